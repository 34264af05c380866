"""What one looks at: figures, how they look (style), coloured text (html), things to click on."""
