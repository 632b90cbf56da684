"""Files of CMU-MOSI and CMU-MOSEI."""
