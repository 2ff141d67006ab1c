"""One file for each command of the library, which reads like its recipe: open, understand, rename,
arrange, plan, run, verify, commit. Each file hands on the functions and results that it defines.
"""
