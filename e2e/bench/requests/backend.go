package requests

import (
	"bufio"
	"bytes"
	"context"
	"net"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// backend answers every request on ln, of either version, with the same bytes and as little work as it takes. It ends when ln is closed.
func backend(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the process
			defer nc.Close()
			br := bufio.NewReader(nc)
			if first, err := br.Peek(3); err == nil && string(first) == "PRI" {
				_ = h2.NewServer(h2.NetTransport(peeked{nc, br}), h2.Config{MaxStreams: 1 << 10}, answer2).Run()
				return
			}
			answer1(nc, br)
		}()
	}
}

// peeked is a connection of which a reader holds the beginning.
type peeked struct {
	net.Conn
	br *bufio.Reader
}

func (p peeked) Read(b []byte) (int, error) { return p.br.Read(b) }

func answer1(nc net.Conn, br *bufio.Reader) {
	answer := append([]byte("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 70\r\ndate: Mon, 23 Nov 2026 16:00:00 GMT\r\n\r\n"), body()...)
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return
		}
		if len(line) > 2 {
			continue
		}
		if _, err := nc.Write(answer); err != nil {
			return
		}
	}
}

func answer2(s *h2.Stream) {
	if _, err := s.Headers(context.Background()); err != nil {
		return
	}
	header := []h2.Field{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "text/plain"}, {Name: "content-length", Value: "70"},
		{Name: "date", Value: "Mon, 23 Nov 2026 16:00:00 GMT"}}
	if s.AddHeaders(header, false) != nil {
		return
	}
	if _, err := s.Add(body()); err == nil {
		_ = s.CloseWrite()
	}
}

// body is that of every response.
func body() []byte { return bytes.Repeat([]byte("x"), bodySize) }
