"""PVC: Progressive Visual Token Compression, a vision-language model for images and videos.

The modules of this package are the files that travel with every checkpoint (`modeling_pvc`, `preprocess`,
...); import from them directly. `CHECKPOINT` is the folder of PVC-Tiny, the small model that comes with the
package.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).resolve().parent
ABOUT_CHECKPOINT = (
    "PVC-Tiny knows small worlds alone: coloured shapes, where they are and where they move, and words, the "
    "long ones often with a wrong letter. Of several pictures it knows little, of anything else nothing."
)
