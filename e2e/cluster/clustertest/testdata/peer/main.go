// Command peer is both ends of the connections that the cluster test makes: `peer serve` answers every connection with the
// address that it came from, `peer ask ADDRESS` prints the answer.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) == 3 && os.Args[1] == "ask":
		err = ask(os.Args[2])
	default:
		err = fmt.Errorf("want serve, or ask and an address")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func serve() error {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	fmt.Println("serving")
	name, _ := os.Hostname()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		fmt.Fprintf(conn, "%s saw %s\n", name, host)
		conn.Close()
	}
}

func ask(address string) error {
	conn, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.Copy(os.Stdout, conn)
	return err
}
