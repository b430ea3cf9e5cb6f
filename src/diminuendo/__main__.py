from diminuendo.cli import main

main()
