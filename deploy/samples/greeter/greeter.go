// Package greeter is a server-first protocol over TCP: the server speaks as soon as it is connected, before the client has
// sent a byte. A proxy that waits for the client's first bytes to find out what it carries makes such a protocol hang.
//
// The server's first line is "hello <client address> from <pod> on <node>". It then answers every line "x" by "you said x",
// and ends when the client has ended.
package greeter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/deploy/samples/whoami"
)

// maxLine bounds a line in bytes, so that a client that never ends one holds little.
const maxLine = 4096

// idle is how long the server waits for a client's next line.
const idle = 10 * time.Minute

// Handle serves one connection and closes it.
func Handle(conn net.Conn, me whoami.Who) {
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "hello %s from %s on %s\n", conn.RemoteAddr(), me.Pod, me.Node); err != nil {
		return
	}
	lines := bufio.NewReaderSize(conn, maxLine)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(idle)) // fails only on a closed connection, and then so does the read
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(conn, "you said %s", line); err != nil {
			return
		}
	}
}

// Greeting is what a client learnt.
type Greeting struct {
	// Line is the server's first line, without its end.
	Line string
	// Client is the address that the server says it saw.
	Client string
	// Echo is the answer to what the client said.
	Echo string
}

// Ask connects, waits for the greeting without having sent anything, says one line, and reads the answer. It fails when
// ctx ends or the connection does.
func Ask(ctx context.Context, addr, say string) (Greeting, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Greeting{}, fmt.Errorf("greeter %s: %w", addr, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return Converse(conn, say)
}

// Converse does what Ask does on a connection that the caller has, and closes, itself.
func Converse(conn io.ReadWriter, say string) (Greeting, error) {
	lines := bufio.NewReaderSize(conn, maxLine)
	first, err := lines.ReadString('\n')
	if err != nil {
		return Greeting{}, fmt.Errorf("wait for the greeting: %w", err)
	}
	greeting := Greeting{Line: strings.TrimSpace(first)}
	if words := strings.Fields(first); len(words) > 1 && words[0] == "hello" {
		greeting.Client = words[1]
	} else {
		return greeting, fmt.Errorf("greeting %q is not one", greeting.Line)
	}
	if _, err := fmt.Fprintf(conn, "%s\n", say); err != nil {
		return greeting, fmt.Errorf("say a line: %w", err)
	}
	echo, err := lines.ReadString('\n')
	if err != nil {
		return greeting, fmt.Errorf("read the answer: %w", err)
	}
	greeting.Echo = strings.TrimSpace(echo)
	if want := "you said " + say; greeting.Echo != want {
		return greeting, fmt.Errorf("answer %q, want %q", greeting.Echo, want)
	}
	return greeting, nil
}
