"""Words of invoices, receipts and court papers; nothing but lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class InvoiceWords:
    """What an invoice of one language says.

    Attributes:
        titles: what the paper is called.
        labels: what stands before the values of its head.
        number: heading of the column of positions.
        article: headings of the columns of article numbers.
        item: headings of the column of descriptions.
        figures: headings of the columns of figures.
        units: of quantities.
        totals: labels of sums.
        letter: sentences before and after the positions.
        foot: labels of the lines at the lower edge.
        receipt: lines of a receipt, without values.
        thousands: what parts thousands, and the decimal sign.
    """

    titles: tuple[str, ...]
    labels: tuple[str, ...]
    number: tuple[str, ...]
    article: tuple[str, ...]
    item: tuple[str, ...]
    figures: tuple[str, ...]
    units: tuple[str, ...]
    totals: tuple[str, ...]
    letter: tuple[str, ...]
    foot: tuple[str, ...]
    receipt: tuple[str, ...]
    thousands: str


INVOICE_SHARES: Final = {"de": 0.5, "en": 0.2, "fr": 0.12, "es": 0.06, "it": 0.06, "nl": 0.06}
"""How often each language is drawn: German ones were read worst."""

INVOICES: Final = {
    "de": InvoiceWords(
        ("Rechnung", "Rechnung Nr.", "RECHNUNG", "Gutschrift", "Lieferschein", "Angebot", "Auftragsbestätigung",
         "Teilrechnung", "Schlussrechnung", "Mahnung", "Korrekturrechnung", "Abschlagsrechnung"),
        ("Rechnungsnummer", "Rechnungs-Nr.", "Rechnungsdatum", "Datum", "Kundennummer", "Kunden-Nr.", "Lieferdatum",
         "Leistungsdatum", "Leistungszeitraum", "Auftrags-Nr.", "Bestellnummer", "Ihre Bestellung", "Unser Zeichen",
         "Ihr Zeichen", "Sachbearbeiter", "Ansprechpartner", "Telefon", "Telefax", "E-Mail", "Seite", "Fällig am",
         "Lieferschein-Nr.", "Vertragskonto", "USt-IdNr.", "Kostenstelle", "Projekt", "Währung", "GLN", "Bearbeiter"),
        ("Pos.", "Pos", "Nr.", "#"),
        ("Art.-Nr.", "Artikelnummer", "Artikel-Nr.", "Artikel", "Best.-Nr.", "EAN"),
        ("Bezeichnung", "Beschreibung", "Artikelbezeichnung", "Leistung", "Produkt", "Text"),
        ("Menge", "Einheit", "Einzelpreis", "E-Preis", "Preis/Einh.", "Netto", "MwSt.", "USt %", "Rabatt", "Gesamt",
         "Gesamtpreis", "Betrag", "Betrag EUR", "Summe", "Anzahl", "Steuersatz", "Preis in €", "G-Preis"),
        ("Stk", "Stück", "Std.", "kg", "m", "m²", "Pack", "Karton", "Psch.", "Liter", "Tag", "C62", "H87", "Fl."),
        ("Zwischensumme", "Summe netto", "Nettobetrag", "zzgl. 19 % MwSt.", "zzgl. 7 % USt.", "MwSt. 19 %",
         "Gesamtbetrag",
         "Rechnungsbetrag", "Endbetrag", "Zu zahlen", "Versandkosten", "Rabatt 5 %", "Anzahlung", "Gesamtsumme brutto",
         "Steuerbetrag", "Bemessungsgrundlage", "Summe Zu-/Abschläge", "Zahlbetrag"),
        ("Sehr geehrte Damen und Herren,",
         "wir bedanken uns für Ihren Auftrag und stellen Ihnen wie folgt in Rechnung:",
         "für unsere Lieferungen und Leistungen erlauben wir uns zu berechnen:",
         "Zahlbar ohne Abzug bis zum 14.03.2019.",
         "Zahlbar innerhalb von 14 Tagen mit 2 % Skonto, innerhalb von 30 Tagen netto.", "Mit freundlichen Grüßen",
         "Bitte überweisen Sie den Betrag unter Angabe der Rechnungsnummer auf das unten genannte Konto.",
         "Die Ware bleibt bis zur vollständigen Bezahlung unser Eigentum.", "Vielen Dank für Ihren Einkauf!",
         "Es gelten unsere Allgemeinen Geschäftsbedingungen.", "Der Betrag wird von Ihrem Konto abgebucht.",
         "Das Leistungsdatum entspricht dem Rechnungsdatum.", "Steuerfreie innergemeinschaftliche Lieferung.",
         "Lieferung frei Haus.", "Reklamationen bitte innerhalb von 8 Tagen.", "Rückfragen beantworten wir gerne."),
        ("Geschäftsführer:", "Geschäftsführung:", "Amtsgericht", "HRB", "Handelsregister", "Sitz der Gesellschaft:",
         "Bankverbindung:", "Sparkasse", "Volksbank eG", "Commerzbank", "Konto", "BLZ", "IBAN:", "BIC:", "USt-IdNr.:",
         "Steuernummer:", "Tel.:", "Fax:", "Internet:", "E-Mail:", "Gläubiger-ID:", "Finanzamt"),
        ("Bon-Nr.", "Kasse", "Bediener", "Summe", "SUMME EUR", "Gegeben BAR", "Rückgeld", "EC-Karte", "MwSt", "Netto",
         "Steuer", "Brutto", "A 19,00 %", "B 7,00 %", "Vielen Dank für Ihren Einkauf", "Es bediente Sie", "Filiale",
         "Zwischensumme", "Pfand", "Kundenbeleg", "Terminal-ID", "Öffnungszeiten", "Umtausch nur mit Kassenbon"),
        ".,",
    ),
    "en": InvoiceWords(
        ("Invoice", "INVOICE", "Tax Invoice", "Credit Note", "Packing Slip", "Quotation", "Purchase Order", "Statement",
         "Bill", "Order Confirmation", "Estimate", "Delivery Note"),
        ("Invoice No.", "Invoice Number", "Invoice Date", "Date", "Customer No.", "Account No.", "Due Date",
         "Order No.",
         "PO Number", "Terms", "Ship Via", "Sales Rep", "Page", "Phone", "Fax", "Your Ref.", "Our Ref.", "VAT No.",
         "Bill To", "Ship To", "Currency", "Project", "F.O.B.", "Delivery Date", "Contact"),
        ("#", "No.", "Line", "Item"),
        ("Item No.", "SKU", "Part No.", "Code", "Product"),
        ("Description", "Item", "Product", "Details", "Service"),
        ("Qty", "Quantity", "Unit", "Unit Price", "Price", "Rate", "Hours", "Discount", "Tax", "VAT %", "Amount",
         "Total",
         "Line Total", "Net", "Ordered", "Shipped", "UOM", "Extended"),
        ("pcs", "ea", "hrs", "kg", "box", "m", "set", "EA", "CS", "lbs", "ft", "doz"),
        ("Subtotal", "Sales Tax", "VAT 20%", "Shipping", "Total", "Balance Due", "Amount Due", "Discount", "Deposit",
         "Net Total", "Freight", "TOTAL", "Total Due", "Amount Paid", "Tax (8.25%)", "Handling"),
        ("Thank you for your business.", "Please make all checks payable to the company named above.",
         "Payment is due within 30 days of the date of this invoice.", "Goods remain our property until paid in full.",
         "A late fee of 1.5% per month applies to overdue balances.", "If you have any questions, please call us.",
         "Dear Sir or Madam,", "we invoice you for the following:", "Please quote the invoice number when paying.",
         "Prices are exclusive of tax unless stated otherwise.", "Returns are accepted within 14 days."),
        ("Company No.", "Registered in England", "VAT Reg. No.", "Bank:", "Sort Code:", "Account:", "IBAN:", "BIC:",
         "Tel:", "Fax:", "Web:", "Email:", "Director:", "Registered office:", "Tax ID:"),
        ("Receipt", "Cashier", "Register", "Store", "SUBTOTAL", "TAX", "TOTAL", "CASH", "CHANGE", "VISA", "DEBIT",
         "AUTH CODE", "Items sold", "Thank you", "Please come again", "BALANCE DUE", "Server", "Table", "Guests", "Tip",
         "MEMBER", "You saved", "Return policy: 30 days with receipt", "CUSTOMER COPY"),
        ",.",
    ),
    "fr": InvoiceWords(
        ("Facture", "FACTURE", "Facture n°", "Avoir", "Devis", "Bon de livraison", "Bon de commande", "Relevé"),
        ("Numéro de facture", "Date de facture", "Date", "N° client", "Code client", "Commande", "Échéance",
         "Référence",
         "Votre référence", "Page", "Tél.", "Mode de règlement", "N° TVA", "SIRET", "Date de livraison", "Contact"),
        ("N°", "Pos.", "Lig."),
        ("Réf.", "Référence", "Code", "Article"),
        ("Désignation", "Description", "Libellé", "Produit"),
        ("Qté", "Quantité", "Unité", "P.U. HT", "Prix unitaire", "Remise", "TVA", "Taux", "Montant HT", "Montant",
         "Total HT", "Total TTC"),
        ("pce", "h", "kg", "m", "lot", "forfait", "u", "L"),
        ("Total HT", "TVA 20 %", "TVA 5,5 %", "Total TTC", "Net à payer", "Acompte", "Frais de port", "Remise",
         "Sous-total", "Base HT", "Montant TVA"),
        ("Madame, Monsieur,", "Veuillez trouver ci-dessous le détail de votre commande.",
         "Nous vous remercions de votre confiance.",
         "Paiement à 30 jours fin de mois.", "Pas d'escompte pour paiement anticipé.",
         "En cas de retard de paiement, une indemnité forfaitaire de 40 € sera exigée.", "Règlement par virement."),
        ("SIRET :", "RCS", "Capital social :", "TVA intracommunautaire :", "Banque :", "IBAN :", "BIC :", "Tél. :",
         "Fax :",
         "Siège social :", "Code APE :", "E-mail :"),
        ("Ticket", "Caisse", "Vendeur", "TOTAL", "ESPÈCES", "RENDU", "CB", "TVA", "HT", "TTC", "Merci de votre visite",
         "À bientôt", "Nombre d'articles", "Sous-total", "Reste à payer", "Carte fidélité"),
        " ,",
    ),
    "es": InvoiceWords(
        ("Factura", "FACTURA", "Presupuesto", "Albarán", "Factura rectificativa"),
        ("N.º de factura", "Fecha", "Fecha de vencimiento", "Cliente", "Código", "Pedido", "Referencia", "NIF", "CIF",
         "Página", "Teléfono", "Forma de pago", "Dirección"),
        ("Nº", "Pos."),
        ("Ref.", "Código", "Artículo"),
        ("Descripción", "Concepto", "Artículo"),
        ("Cantidad", "Cant.", "Precio", "Precio unitario", "Dto.", "IVA", "Importe", "Total", "Base"),
        ("ud.", "h", "kg", "m", "caja", "L"),
        ("Base imponible", "IVA 21 %", "Total", "Total factura", "Subtotal", "Descuento", "Portes", "A pagar", "IRPF"),
        ("Estimado cliente:", "Gracias por su compra.", "Pago a 30 días mediante transferencia bancaria.",
         "Le adjuntamos el detalle de los servicios prestados.", "Inscrita en el Registro Mercantil."),
        ("CIF:", "IBAN:", "BIC:", "Tel.:", "Fax:", "Banco:", "Registro Mercantil:", "Correo:"),
        ("Ticket", "Caja", "TOTAL", "EFECTIVO", "CAMBIO", "TARJETA", "IVA", "Gracias por su visita", "Artículos",
         "Mesa"),
        ".,",
    ),
    "it": InvoiceWords(
        ("Fattura", "FATTURA", "Preventivo", "Documento di trasporto", "Nota di credito"),
        ("Numero fattura", "Data", "Scadenza", "Cliente", "Codice cliente", "Ordine", "Riferimento", "P. IVA",
         "Codice fiscale", "Pagina", "Telefono", "Pagamento"),
        ("N.", "Pos."),
        ("Codice", "Cod.", "Articolo"),
        ("Descrizione", "Prodotto", "Servizio"),
        ("Quantità", "Q.tà", "U.M.", "Prezzo", "Prezzo unitario", "Sconto", "IVA", "Importo", "Totale"),
        ("pz", "h", "kg", "m", "conf.", "L"),
        ("Imponibile", "IVA 22 %", "Totale", "Totale fattura", "Sconto", "Spese di spedizione", "Netto a pagare"),
        ("Spett.le Ditta,", "La ringraziamo per l'ordine.", "Pagamento a 30 giorni data fattura.",
         "Contributo ambientale assolto ove dovuto.", "Bonifico bancario."),
        ("P. IVA:", "C.F.:", "IBAN:", "BIC:", "Tel.:", "Fax:", "Banca:", "Capitale sociale:", "REA:"),
        ("Scontrino", "Cassa", "TOTALE", "CONTANTI", "RESTO", "CARTA", "Grazie e arrivederci", "Documento n.",
         "di cui IVA"),
        ".,",
    ),
    "nl": InvoiceWords(
        ("Factuur", "FACTUUR", "Offerte", "Pakbon", "Creditnota"),
        ("Factuurnummer", "Factuurdatum", "Datum", "Klantnummer", "Debiteurnr.", "Vervaldatum", "Uw referentie",
         "Pagina",
         "Telefoon", "Btw-nummer", "KvK", "Bestelnummer"),
        ("Nr.", "Pos."),
        ("Art.nr.", "Artikel", "Code"),
        ("Omschrijving", "Product", "Dienst"),
        ("Aantal", "Eenheid", "Prijs", "Stukprijs", "Korting", "Btw", "Bedrag", "Totaal"),
        ("st", "uur", "kg", "m", "doos", "L"),
        ("Subtotaal", "Btw 21 %", "Totaal", "Totaal te betalen", "Verzendkosten", "Korting", "Totaal excl. btw"),
        ("Geachte heer, mevrouw,", "Hierbij brengen wij u de volgende werkzaamheden in rekening.",
         "Wij verzoeken u het bedrag binnen 14 dagen over te maken.", "Bedankt voor uw bestelling."),
        ("KvK:", "Btw:", "IBAN:", "BIC:", "Tel.:", "Fax:", "E-mail:", "Bank:"),
        ("Kassabon", "Kassa", "TOTAAL", "CONTANT", "WISSELGELD", "PIN", "Btw", "Bedankt en tot ziens",
         "Aantal artikelen"),
        ".,",
    ),
}  # fmt: skip

STATES: Final = (
    "California", "New York", "Texas", "Ohio", "Illinois", "Florida", "Oregon", "Virginia", "Georgia", "Nevada", "Utah",
    "Washington", "Michigan", "Indiana", "Maryland", "Arizona", "Colorado", "Delaware", "Kansas", "Iowa", "Maine",
)  # fmt: skip
DISTRICTS: Final = ("Northern", "Southern", "Eastern", "Western", "Central", "Middle")
COURTS: Final = (
    "United States District Court", "In the United States District Court", "Superior Court of the State of",
    "Supreme Court of the State of", "United States Bankruptcy Court", "In the Circuit Court of",
    "United States Court of Appeals", "In the Court of Common Pleas", "Before the Board of Review", "District Court of",
)  # fmt: skip
PARTIES: Final = (
    "Plaintiff", "Plaintiffs", "Defendant", "Defendants", "Petitioner", "Respondent", "Appellant", "Appellee", "Debtor",
    "Claimant", "Intervenor", "Cross-Complainant", "Third-Party Defendant", "Plaintiff-Appellant",
)  # fmt: skip
PARTY_NAMES: Final = (
    "Inc.", "LLC", "Corporation", "Co.", "L.P.", "Ltd.", "et al.", "Company", "Bank, N.A.", "an individual",
    "a Delaware corporation", "Trust", "Association", "Partners", "County of", "City of", "State of", "in rem",
)  # fmt: skip
MOTIONS: Final = (
    "Notice of Motion and Motion to Dismiss", "Complaint for Damages", "Order Granting Motion for Summary Judgment",
    "Declaration in Support of Opposition", "Memorandum of Points and Authorities", "Stipulation and Proposed Order",
    "Answer to First Amended Complaint", "Plaintiff's Reply Brief", "Demand for Jury Trial", "Findings of Fact",
    "Petition for Writ of Habeas Corpus", "Certificate of Service", "Joint Case Management Statement", "Subpoena",
    "Affidavit of Service", "Notice of Appeal", "Opinion and Order", "Motion to Compel Discovery", "Final Judgment",
)  # fmt: skip
CASE_LABELS: Final = (
    "Case No.", "Case No.:", "Civil Action No.", "No.", "Index No.", "Docket No.", "CASE NO.", "Cause No.", "Crim. No.",
    "Civ.", "Chapter 11 Case No.", "Adv. Proc. No.",
)  # fmt: skip
CAPTION_LINES: Final = (
    "Judge:", "Hon.", "Dept.:", "Department", "Date:", "Time:", "Courtroom:", "Trial Date:", "Action Filed:",
    "Hearing:",
    "Magistrate Judge", "Assigned to", "Jury Trial Demanded", "Filed concurrently herewith", "Related to Docket No.",
)  # fmt: skip
SIGNATURES: Final = (
    "Respectfully submitted,", "Dated:", "DATED:", "By:", "/s/", "Attorney for Plaintiff", "Attorneys for Defendants",
    "IT IS SO ORDERED.", "United States District Judge", "Notary Public", "State Bar No.", "Clerk of the Court",
    "Signature", "Name", "Title", "Address", "Phone number", "Sworn to before me this",
)  # fmt: skip
STAMPS: Final = (
    "FILED", "RECEIVED", "COPY", "ENTERED", "ORIGINAL", "E-FILED", "PAID", "APPROVED", "DRAFT", "CONFIDENTIAL",
    "RECEIVED AND FILED", "BEZAHLT", "EINGEGANGEN", "KOPIE",
)  # fmt: skip
FORM_LABELS: Final = (
    "Name", "Last name", "First name", "Middle initial", "Street address", "City", "State", "ZIP code", "Telephone",
    "Date of birth", "Place of birth", "Social security number", "Occupation", "Employer", "Signature", "Date", "Title",
    "Amount", "Total", "Remarks", "Number of persons", "Name und Anschrift", "Geburtsdatum", "Unterschrift",
    "Ort, Datum",
    "Nom", "Prénom", "Adresse", "Code postal", "Ville", "Nombre", "Apellidos", "Firma", "Straße, Hausnummer",
    "PLZ, Ort",
    "Staatsangehörigkeit", "Account number", "Permit no.", "Purpose", "Description of property", "Agency", "Section",
)  # fmt: skip
