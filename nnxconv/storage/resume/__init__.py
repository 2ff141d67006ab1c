"""What `--resume` keeps beside a target: journals of finished work, on a disk or in a bucket."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
