"""Pure torch modules, one file per architecture family, and the catalogue that registers them."""
