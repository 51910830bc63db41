"""`dfkd bank browse`: banks and runs of a folder in the browser. Reads, and never writes below that folder.

`library` knows what is in the folder and refuses what is not; `index` holds the columns of a bank and cuts its pages;
`networks`, `scatter` and `jobs` compute what takes longer; `routes` answers requests, `app` guards them, `serve` starts the
server. torch is imported with the first question to a network: a page of images needs none.
"""
