"""From a source of images to files of vectors, without a catalog: resumable, and no Prefect."""
