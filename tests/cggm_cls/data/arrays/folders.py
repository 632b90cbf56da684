"""Folders of arrays in every format: eight samples of two modalities, some facts about them."""

import csv

import numpy as np
import pandas as pd

SPLIT = np.array(["train"] * 4 + ["valid"] * 2 + ["test"] * 2)
IDS = np.array([f"{n:03d}" for n in (7, 3, 5, 1, 8, 2, 6, 4)])
LAB = np.arange(16.0).reshape(8, 2) ** 2
ECG = np.arange(24.0).reshape(8, 3, 1)
LENGTHS = np.array([3, 2, 1, 3, 1, 3, 3, 3])
TARGET = np.array(["well", "sick"] * 4)


def write_csv(file, columns):
    """A table by Python's own writer, numbers to their last digit."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(c).tolist() for c in columns.values()), strict=True))


def write_array_file(file, arrays):
    """Arrays in the format of the file's ending."""
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    elif file.suffix == ".h5":
        import h5py

        with h5py.File(file, "w") as root:
            for name, array in arrays.items():
                text = array.dtype.kind == "U"
                root[name] = array.astype(h5py.string_dtype()) if text else array
    elif file.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, file)
    elif file.suffix == ".parquet":
        pd.DataFrame({n: a.tolist() for n, a in arrays.items()}).to_parquet(file)
    else:
        write_csv(file, arrays)


def write_tables(folder, order=None, suffix=".csv"):
    """lab with identifiers in another order than labels, ecg with neither."""
    folder.mkdir(exist_ok=True)
    order = np.arange(8) if order is None else order
    lab = {"id": IDS[order], "crp": LAB[order, 0], "ldh": LAB[order, 1]}
    write_array_file(folder / f"lab{suffix}", lab)
    write_array_file(folder / f"labels{suffix}", {"id": IDS, "diagnosis": TARGET, "split": SPLIT})
    np.save(folder / "ecg.npy", ECG)
    np.save(folder / "ecg.lengths.npy", LENGTHS)
    return folder
