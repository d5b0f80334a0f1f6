"""Step sizes, where each new one costs time and memory."""


def padded_size(num_rows: int) -> int:
    """The number of rows that a step of `num_rows` is padded to.

    oneDNN builds and keeps a kernel for each shape that it meets, about 3 ms and 0.6 MB for each
    matrix: a replica that meets every batch size would grow by a gigabyte. Few shapes, and few
    wasted rows: at most a third, and less than 64.
    """
    for limit, multiple in ((2, 1), (8, 2), (32, 4), (64, 8), (256, 32)):
        if num_rows <= limit:
            return -(-num_rows // multiple) * multiple
    return -(-num_rows // 64) * 64
