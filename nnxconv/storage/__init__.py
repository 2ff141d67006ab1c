"""How named arrays are found and written. The only code that knows Orbax, TensorStore and etils."""
