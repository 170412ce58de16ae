package netns

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ambit-mesh/ambit/e2e/lab"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
)

// peer is a client of the tunnel protocol that says whatever it is told to, well-formed or not.
type peer struct {
	conn   *tls.Conn
	framer *http2.Framer
	next   uint32
}

// dialPeer connects from a pod that is not captured to another's tunnel port, with a certificate.
func dialPeer(from, to *lab.Pod, cert *tls.Certificate) (*peer, error) {
	raw, err := from.Dial(addr(to, false, 15008))
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(ioTimeout))
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		// The test looks at what the server does with its client; who the server is, other tests ask.
		InsecureSkipVerify: true,
	}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn := tls.Client(raw, cfg)
	if err := conn.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	p := &peer{conn: conn, framer: http2.NewFramer(conn, conn), next: 1}
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	return p, p.framer.WriteSettings()
}

func (p *peer) close() { p.conn.Close() }

// request opens a stream with any headers and returns the status of the answer; an error if there is none.
func (p *peer) request(fields ...hpack.HeaderField) (status string, err error) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			return "", err
		}
	}
	id := p.next
	p.next += 2
	rest := block.Bytes()
	first := rest[:min(len(rest), 16384)]
	rest = rest[len(first):]
	err = p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(rest) == 0})
	for err == nil && len(rest) > 0 {
		part := rest[:min(len(rest), 16384)]
		rest = rest[len(part):]
		err = p.framer.WriteContinuation(id, len(rest) == 0, part)
	}
	if err != nil {
		return "", err
	}
	for {
		f, err := p.framer.ReadFrame()
		if err != nil {
			return "", err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if err := p.framer.WriteSettingsAck(); err != nil {
					return "", err
				}
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				return f.PseudoValue("status"), nil
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "", fmt.Errorf("stream reset: %v", f.ErrCode)
			}
		case *http2.GoAwayFrame:
			return "", fmt.Errorf("connection ended: %v %s", f.ErrCode, f.DebugData())
		}
	}
}

// connect asks for a tunnel.
func (p *peer) connect(authority string, extra ...hpack.HeaderField) (string, error) {
	return p.request(append([]hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}}, extra...)...)
}

// tunnelWorld is a captured server with an application on port 8080, and a pod that is not captured but has a certificate.
func tunnelWorld(t *testing.T) (w *world, client, server *lab.Pod, cert *tls.Certificate) {
	w = newWorld(t)
	n := w.node("node1")
	server, client = w.captured(n, "server"), w.pod(n, "client")
	w.listen(server, ":8080", echo)
	w.settle()
	cert, _, err := w.Control.SignIdentity(client.Identity())
	w.must(err)
	return w, client, server, cert
}

func TestTunnelRequests(t *testing.T) {
	w, client, server, cert := tunnelWorld(t)
	w.serve("web", 1, true, server)
	other := w.pod(server.Node, "other")
	w.settle()
	ok := addr(server, false, 8080)
	long := hpack.HeaderField{Name: "baggage", Value: strings.Repeat("x", 200<<10)}
	for _, tc := range []struct {
		name   string
		fields []hpack.HeaderField
		want   string // status; empty for an end of the stream or connection
	}{
		{"good", connectTo(ok), "200"},
		{"good, by host name", connectTo("web.default.svc.cluster.local:80"), "200"},
		{"another pod's address", connectTo(addr(other, false, 8080)), "400"},
		{"an address of nobody", connectTo("192.0.2.1:8080"), "400"},
		{"no port", connectTo(server.IPv4.String()), "400"},
		{"port 0", connectTo(server.IPv4.String() + ":0"), "400"},
		{"port too large", connectTo(server.IPv4.String() + ":70000"), "400"},
		{"user and path", connectTo("me@" + ok + "/path"), "400"},
		{"IPv6 without brackets", connectTo(server.IPv6.String() + ":8080"), "400"},
		{"unknown host", connectTo("nobody.default.svc.cluster.local:80"), "503"},
		{"port that the service has not", connectTo("web.default.svc.cluster.local:81"), "503"},
		{"nobody listens", connectTo(addr(server, false, 9999)), "503"},
		{"the proxy's own port", connectTo(addr(server, false, 15008)), "503"},
		{"another method", []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"},
			{Name: ":path", Value: "/"}, {Name: ":authority", Value: ok}}, "400"},
		{"oversized headers", append(connectTo(ok), long), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := w.in(t)
			p, err := dialPeer(client, server, cert)
			w.must(err)
			defer p.close()
			status, err := p.request(tc.fields...)
			if tc.want == "" {
				if err == nil && status != "431" && status != "400" {
					t.Errorf("status %s, want a refusal", status)
				}
			} else if err != nil || status != tc.want {
				t.Errorf("status %q, %v; want %s", status, err, tc.want)
			}
			// Whatever this client did, others are served.
			q, err := dialPeer(client, server, cert)
			w.must(err)
			defer q.close()
			if status, err := q.connect(ok); err != nil || status != "200" {
				t.Errorf("afterwards: status %q, %v; want 200", status, err)
			}
		})
	}
}

func connectTo(authority string) []hpack.HeaderField {
	return []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}}
}

func TestGarbageOnTheTunnelPort(t *testing.T) {
	w, client, server, cert := tunnelWorld(t)
	send := func(name string, f func(c net.Conn) error) {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			c, err := client.Dial(addr(server, false, 15008))
			w.must(err)
			defer c.Close()
			c.SetDeadline(time.Now().Add(ioTimeout))
			if err := f(c); err != nil {
				t.Logf("while sending: %v", err)
			}
			// The proxy ends the connection, by itself, before the test's deadline.
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("connection is still open after %v", ioTimeout)
			}
			p, err := dialPeer(client, server, cert)
			w.must(err)
			defer p.close()
			if status, err := p.connect(addr(server, false, 8080)); err != nil || status != "200" {
				t.Errorf("afterwards: status %q, %v; want 200", status, err)
			}
		})
	}
	send("text", func(c net.Conn) error { _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); return err })
	send("zeroes", func(c net.Conn) error { _, err := c.Write(make([]byte, 1<<16)); return err })
	send("a TLS record that does not end", func(c net.Conn) error {
		_, err := c.Write([]byte{0x16, 3, 1, 0x3f, 0xff, 1})
		return err
	})
	send("nothing", func(net.Conn) error { return nil })
	send("TLS, then garbage", func(c net.Conn) error {
		conn := tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
			Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true})
		_, err := conn.Write(bytes.Repeat([]byte{0xff}, 100))
		return err
	})
	send("TLS, then nothing", func(c net.Conn) error {
		return tls.Client(c, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
			Certificates: []tls.Certificate{*cert}, InsecureSkipVerify: true}).Handshake()
	})
}

func TestClientCertificates(t *testing.T) {
	w, client, server, good := tunnelWorld(t)
	try := func(cert *tls.Certificate) (string, error) {
		p, err := dialPeer(client, server, cert)
		if err != nil {
			return "", err
		}
		defer p.close()
		return p.connect(addr(server, false, 8080))
	}
	if status, err := try(good); err != nil || status != "200" {
		t.Fatalf("good certificate: status %q, %v", status, err)
	}
	foreign, err := identitytest.NewCA()
	w.must(err)
	id, err := identity.Parse(client.Identity())
	w.must(err)
	otherRoot, err := foreign.SVID(id)
	w.must(err)
	otherDomain, _, err := w.Control.SignIdentity("spiffe://elsewhere.example/ns/default/sa/client")
	w.must(err)
	noIdentity, _, err := w.Control.SignIdentity("https://cluster.local/ns/default/sa/client")
	w.must(err)
	for _, tc := range []struct {
		name string
		cert *tls.Certificate
	}{
		{"none", nil},
		{"of another root", &otherRoot.TLS},
		{"of another trust domain", otherDomain},
		{"without an identity", noIdentity},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status, err := try(tc.cert); err == nil {
				t.Errorf("status %q, want the handshake to fail", status)
			}
		})
	}
}

// TestServerMustProveItself gives a captured client a server that is not who discovery says.
func TestServerMustProveItself(t *testing.T) {
	w := newWorld(t)
	n := w.node("node1")
	client, victim := w.captured(n, "client"), w.pod(n, "victim")
	w.Control.SetAddresses(victim.Address(true)) // discovery says HBONE, and the test itself answers
	w.settle()
	reached := make(chan string, 8)
	impostor, pool, err := w.Control.SignIdentity("spiffe://cluster.local/ns/default/sa/impostor")
	w.must(err)
	ln, err := victim.Listen(":15008")
	w.must(err)
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			server := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*impostor}, ClientCAs: pool,
				ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
			server.SetDeadline(time.Now().Add(ioTimeout))
			buf := make([]byte, 1024)
			nread, err := server.Read(buf)
			reached <- fmt.Sprintf("%q %v", buf[:nread], err)
			server.Close()
		}
	}()
	w.refused(client, addr(victim, false, 8080))
	select {
	case what := <-reached:
		if strings.HasPrefix(what, `"PRI`) {
			t.Errorf("the client spoke to an impostor: %s", what)
		}
	case <-time.After(ioTimeout):
		t.Error("the client did not connect to the tunnel port at all")
	}
}
