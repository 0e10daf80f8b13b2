"""The print of two drawn pages, as `shared.images.ink_lines` found it, with their texts: whole readings that used to be
taken for partial ones."""

from shared.images.page_ink import InkLine

SHORT_LINES_TEXT = """\
And that Side.
It Met each new
Eleven and crates.
Counted of met.
Side lay nobody.
Noon Each lay,
But Held it held
Had the we in
Until stayed roof
Prices found a.
Harbour each.
Each harbour
Straw Before repair,
On marked decided,
Harbour letter
For in of the side.
Spent Nobody,
Pears found had,
The for weighed
It pears decided
Repair it and
Already the for
For boats the,
Letter on side
"""
SHORT_LINES = (
    InkLine((50, 64, 217, 81), (48, 50, 52), 15.5),
    InkLine((368, 64, 575, 86), (61, 77, 51), 11.0),
    InkLine((685, 64, 860, 86), (70, 96), 15.5),
    InkLine((51, 96, 249, 113), (19, 47, 56, 48), 11.0),
    InkLine((368, 96, 544, 113), (75, 70, 13), 11.0),
    InkLine((685, 96, 884, 113), (67, 70, 44), 11.0),
    InkLine((51, 128, 268, 145), (80, 44, 74), 11.0),
    InkLine((368, 128, 537, 145), (104, 57), 11.0),
    InkLine((684, 128, 883, 150), (45, 35, 102), 11.0),
    InkLine((51, 160, 240, 177), (102, 25, 46), 11.0),
    InkLine((368, 160, 535, 177), (59, 99), 11.0),
    InkLine((685, 160, 883, 182), (19, 67, 95), 13.0),
    InkLine((51, 192, 243, 214), (52, 35, 88), 16.0),
    InkLine((368, 192, 615, 214), (70, 81, 80), 11.0),
    InkLine((685, 192, 845, 214), (81, 17, 44), 11.0),
    InkLine((51, 224, 230, 246), (64, 60, 38), 11.0),
    InkLine((368, 224, 607, 241), (34, 92, 95), 11.0),
    InkLine((684, 224, 869, 246), (94, 39, 35), 13.0),
    InkLine((51, 256, 248, 273), (44, 58, 17, 52), 16.0),
    InkLine((368, 256, 548, 273), (104, 68), 11.0),
    InkLine((685, 256, 853, 276), (40, 67, 46), 11.0),
    InkLine((51, 288, 221, 305), (49, 39, 32, 24), 11.0),
    InkLine((368, 288, 576, 305), (40, 24, 25, 39, 48), 11.0),
    InkLine((685, 288, 855, 305), (75, 30, 49), 11.0),
)
"""Three narrow columns: the height of characters is that of capitals in one line and of small letters in the next."""
TABLE_TEXT = """\
Minutes of the meti were red znd qpproved.
Sumary 1
1642.24
522.45
5311.35
Pagr 2
398.66
875.58
39.41
Invoce
769.94
1604.64
1563.36
Totall 4
857.34
33.14
782.27
Void 5
1648.12
1906.77
11874.49
Total 6
327.116
179.1q
46.3
"""
TABLE = (
    InkLine((60, 45, 717, 68), (107, 28, 44, 110, 64, 60, 50, 128), 13.0),
    InkLine((60, 115, 210, 138), (128, 13), 13.0),
    InkLine((251, 115, 358, 133), (107,), 18.0),
    InkLine((476, 115, 567, 133), (91,), 18.0),
    InkLine((702, 115, 793, 133), (91,), 18.0),
    InkLine((60, 157, 149, 180), (65, 15), 18.0),
    InkLine((250, 157, 342, 175), (92,), 18.0),
    InkLine((476, 157, 568, 175), (92,), 18.0),
    InkLine((703, 157, 792, 175), (89,), 18.0),
    InkLine((60, 199, 180, 217), (97, 15), 13.0),
    InkLine((252, 199, 341, 217), (89,), 18.0),
    InkLine((477, 199, 584, 217), (107,), 18.0),
    InkLine((703, 199, 811, 217), (108,), 18.0),
    InkLine((61, 241, 149, 259), (65, 15), 17.5),
    InkLine((250, 241, 341, 259), (91,), 18.0),
    InkLine((476, 241, 550, 259), (74,), 18.0),
    InkLine((703, 241, 812, 259), (109,), 18.0),
    InkLine((62, 283, 142, 301), (57, 15), 18.0),
    InkLine((251, 283, 358, 301), (107,), 18.0),
    InkLine((477, 283, 586, 301), (109,), 18.0),
    InkLine((703, 283, 811, 301), (108,), 18.0),
    InkLine((61, 325, 150, 343), (65, 15), 17.5),
    InkLine((250, 325, 342, 343), (92,), 18.0),
    InkLine((477, 325, 567, 343), (90,), 18.0),
    InkLine((702, 325, 776, 343), (74,), 18.0),
)
"""A title, and rows with a label and figures; a tenth of the characters in the text is wrong."""
