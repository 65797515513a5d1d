"""The live sections of the explore notebooks: each module is one of them, built from the blocks in widgets.py.

Every figure comes from plots.py and every number from the modules that training uses, so that what is drawn is what is
trained.
"""
