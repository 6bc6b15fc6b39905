from qrkt_hw.commands import main

main()
