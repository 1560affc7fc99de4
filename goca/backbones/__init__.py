"""Pretrained text-to-image pipelines as sources of attention: a small adapter per family."""

import logging

# transformers advises to install torchvision whenever a pipeline class with an image processor is looked up. GoCA needs none.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "requires torchvision" not in record.getMessage())
