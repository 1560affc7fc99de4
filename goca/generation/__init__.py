"""Image generation with guidance that is scaled region by region (S-CFG), the regions found by the segmentor's own parts."""
