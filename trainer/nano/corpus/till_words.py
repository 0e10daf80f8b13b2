"""Words and forms of what tills print; nothing but lists. `#` is a digit, `@` a capital letter."""

from __future__ import annotations

from typing import Final

FIRMS: Final = (
    "", "Ltd", "LTD.", "Limited", "Inc.", "LLC", "PTE LTD", "PTY LTD", "SDN BHD", "S/B", "& Sons", "Trading",
    "Enterprise", "Supermarket", "Store", "Mart", "Hardware", "Pharmacy", "Restaurant", "Cafe", "Bakery",
    "Stationery", "& Co", "GmbH", "(HQ)", "Books & Gifts", "Foods", "Petrol Station", "Electronics", "Hotel",
    "Parking", "Auto Parts", "Fashion",
)  # fmt: skip

ADDRESS_PARTS: Final = (
    "No. ##, {0} {1}", "NO.## & ##, {0}", "Lot ##-#, {0} {1}", "##, {0} @#/##@", "{0} #/#, {1} {2}", "##### {0}",
    "##### {0}, {1}", "{0} {1}", "Unit @-##-#, {0}", "##@-##@, {0} {1}", "Level #, {0} {1}", "{0} ##/#@, {1}",
    "Shop #@, {0} Mall", "Block @, {0}", "P.O. Box ####, {0}", "### {0} Road", "#### {0} Ave #@", "{0}, {1} #####",
    "(W.P.) {0}",
)  # fmt: skip

LABELS: Final = (
    "Invoice No", "INV NO.", "Doc No.", "Document No", "Date", "Time", "Cashier", "Salesperson", "Terminal", "Till",
    "POS", "Receipt #", "Receipt No", "Bill No", "Table", "Pax", "Order", "Member", "Ref", "Ref.", "Trans",
    "Counter", "Station", "Server", "GST ID No", "Customer", "A/C No", "Printed", "Shift", "Queue No", "Slip No.",
    "Pump", "Card No", "Type", "Qty", "Served by", "Reg", "Clerk", "Batch", "Trace", "TID", "MID", "Approval Code",
    "Location", "Branch",
)  # fmt: skip

VALUES: Final = (
    "##/##/####", "##/##/##", "##-##-####", "####-##-##", "##:##", "##:##:##", "##:##:## PM", "##:## AM",
    "##/##/#### ##:##:## AM", "@@########", "@@@-######", "@##", "##", "#", "###", "######", "################",
    "#########-#", "@@##-####/##", "####@###", "@#-######", "####-####-####", "@@@@", "XXXX XXXX XXXX ####", "#/#",
    "@@/###/##", "######-##-####", "[##] ####", "#@##@###", "0#@# ###", "#####/###/@####", "@###/######", "(####)",
    "#.##.####", "##@##@##",
)  # fmt: skip

CODES: Final = (
    "#############", "########", "######", "####", "@###", "@@-####", "###-###", "@@@#####", "##@####",
    "#######-@@@", "@######-##", "@##-##-#", "############", "@@#/##", "#####.##",
)  # fmt: skip

COLUMN_HEADS: Final = (
    ("Item", "Qty", "Price", "Amount"), ("Description", "Qty", "Amt"), ("ITEM", "QTY", "U/P", "AMT(RM)"),
    ("Qty", "S/P", "Disc", "Total"), ("No. Item", "Price", "Total"), ("Description", "Price", "Qty", "TOTAL"),
    ("Product", "Qty x Price", "Amt"), ("Item", "U.P.", "Total($)"), ("Code/Desc", "Qty", "Unit", "Price"),
    ("QTY", "PRICE", "AMOUNT", "TAX"), ("Item(s)", "Disc(%)", "Amount"),
)  # fmt: skip

TAX_MARKS: Final = (
    ("A", "B"), ("1", "2"), ("",), ("",), ("SR", "ZRL"), ("SR", "SR", "ZR", ""), ("S", "Z"), ("T", "", "F"),
    ("*", ""), ("V", "N"), ("TX",), ("G",),
)  # fmt: skip

SUMS: Final = (
    "Total", "TOTAL", "Sub Total", "Subtotal", "Sub-Total", "Net Total", "Nett", "Grand Total", "Total Amount",
    "Total Sales", "Total (Excl. GST)", "Total (Incl. GST)", "Total Incl. GST @6%", "TOTAL SALES (EXCLUDING GST)",
    "GST @6%", "Tax 8.25%", "VAT @ 20%", "Service Charge 10%", "Rounding", "Rounding Adj", "Rounding Adjustment",
    "Rounded Total", "Cash", "CASH", "Change", "CHANGE DUE", "Tendered", "Amount Paid", "Paid", "Balance", "VISA",
    "MASTERCARD", "Discount", "Total Qty", "Item Count", "No. of Items", "Deposit", "Amount Due", "Payment",
    "Payable", "Points Earned", "Total Savings", "Tips", "Total Disc", "Card", "E-Wallet",
)  # fmt: skip

NOTES: Final = (
    "Thank you", "THANK YOU!", "Thank you for shopping with us.", "Please come again",
    "Goods sold are not returnable.", "Goods sold are not refundable or exchangeable", "Have a nice day",
    "Exchange within 7 days with receipt", "Customer copy", "Merchant copy",
    "This is a computer generated receipt, no signature is required.", "Price inclusive of GST",
    "Keep the receipt for your records", "Follow us on Facebook", "Free parking for 1 hour", "Closed bill",
    "Reprint", "DUPLICATE", "Wifi password", "Tell us how we did", "NO REFUND", "Approved", "Signature",
    "Your points balance", "* indicates taxable items", "VAT included", "Open 24 hours", "Terms & conditions apply",
    "See you again", "E.&O.E.", "E. & O. E.", "Dine-in", "Take away", "Collection no.",
)  # fmt: skip
