"""The checker of shape annotations while tests run: beartype, with an int allowed wherever a float is."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
