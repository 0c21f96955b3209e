"""Programs for working on orlop: peers, images, daemons, the demo, generated code."""
