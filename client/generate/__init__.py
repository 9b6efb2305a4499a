"""At the site, and nowhere else: what a shared generator draws from the site's own masks, and what guards its use."""
