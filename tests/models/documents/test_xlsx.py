import io

from models.documents.xlsx import read_xlsx
from tests.models.documents.made_files import xlsx


def test_rows_have_their_columns_names_below_their_sheets() -> None:
    data = xlsx(
        {
            "Prices": [["item", "price"], ["Cod & chips", 3.5], ["Tea", 1]],
            "Staff": [["name", "since"], ["Ann", 2019]],
        }
    )
    blocks = list(read_xlsx(io.BytesIO(data)))
    assert [(block.heading, block.text.strip()) for block in blocks] == [
        ("Prices", "Prices\n\nitem: Cod & chips\nprice: 3.5"),
        ("Prices", "item: Tea\nprice: 1"),
        ("Staff", "Staff\n\nname: Ann\nsince: 2019"),
    ]
