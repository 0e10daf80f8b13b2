import pytest

from service.routes.external_loader import file_name


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", ""),
        ("scan.pdf", "scan.pdf"),
        ("a%20b%C3%A9.pdf", "a bé.pdf"),
        ("..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("C:%5Cx%5Cy.png", "y.png"),
        ("a%0D%0Ab%00.png", "ab.png"),
        ("%FF.png", "\ufffd.png"),
        ("x" * 300, "x" * 255),
    ],
)
def test_name_is_the_last_part_of_the_path_without_control_characters(header: str, name: str):
    assert file_name(header) == name
