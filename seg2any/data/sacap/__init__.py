"""Get SACap-1M's images out of SA-1B's tars: choose the tars, extract the files, check them.

data/SACap-1M/annotations/anno_train.parquet   one row per image: imagename, image_group, caption, segments_info
data/SACap-1M/raw/sa_000000/sa_1.jpg           `image_group`/`imagename`, from member sa_1.jpg of sa_000000.tar
data/SACap-1M/raw/sa_000000/sa_1.json          its masks, from member sa_1.json
"""
