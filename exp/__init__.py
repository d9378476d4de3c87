"""The code of the groundup notebooks: chapter `nbs/NN_name.ipynb` is module `exp.nbNN`. Importing this imports none."""
