package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
	"github.com/ambit-mesh/ambit/waypoint/config/configtest"
)

// tlsServer greets its clients by TLS and sends back what they say, to the end.
func tlsServer(cfg *tls.Config, greeting string) func(net.Conn) {
	return func(nc net.Conn) {
		c := tls.Server(nc, cfg)
		defer c.Close()
		if _, err := io.WriteString(c, greeting); err != nil {
			return
		}
		if _, err := io.Copy(c, c); err == nil {
			_ = c.CloseWrite()
		}
	}
}

// trickle is a connection whose client says what it has to say in small pieces.
type trickle struct{ net.Conn }

func (c trickle) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i += 100 {
		if n, err := c.Conn.Write(p[i:min(i+100, len(p))]); err != nil {
			return i + n, err
		}
	}
	return len(p), nil
}

func newNamedWorld(t *testing.T) (*world, *identitytest.CA) {
	w, ca := newWorld(t), newAuthority(t)
	server := func(names ...string) *tls.Config {
		cfg := secret(t, ca, names...)
		cfg.NextProtos = nil
		return cfg
	}
	w.pod("a", 1, backendID, tlsServer(server("a.example", "b.wide.example"), "this is a\n"))
	w.plainTCP("b", 2, tlsServer(server("x.wide.example", "y.x.wide.example"), "this is b\n"))
	return w, ca
}

func (w *world) tlsClient(ca *identitytest.CA, nc net.Conn, server string) *tls.Conn {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.RootPEM()))
	return tls.Client(nc, &tls.Config{RootCAs: roots, ServerName: server})
}

// TestServerNames: who asks for a server gets to it, and to no proxy that ends its TLS, however its ClientHello comes.
func TestServerNames(t *testing.T) {
	w, ca := newNamedWorld(t)
	w.applyWith(all, configtest.Named("30s", "", "", map[string]string{"a": `a.example, b.wide.example`, "b": `"*.wide.example"`}))
	for _, tc := range []struct{ server, want string }{
		{"a.example", "this is a"}, {"b.wide.example", "this is a"}, {"x.wide.example", "this is b"}, {"y.x.wide.example", "this is b"}, {"A.Example", "this is a"},
	} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slow=%v", tc.server, slow), func(t *testing.T) {
				var nc net.Conn = w.mustTunnel(rawPort)
				if slow {
					nc = trickle{nc}
				}
				c := w.tlsClient(ca, nc, tc.server)
				defer c.Close()
				big := strings.Repeat("0123456789", 20_000)
				go func() {
					_, _ = io.WriteString(c, big)
					_ = c.CloseWrite()
				}()
				if got, err := io.ReadAll(c); err != nil || string(got) != tc.want+"\n"+big {
					t.Fatalf("%d bytes (%.20q), %v", len(got), got, err)
				}
				_ = c.Close()
				await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "tls.server_name="+tc.server) })
			})
		}
	}
	if log := w.log.String(); strings.Contains(log, "bytes_recv=0") || !strings.Contains(log, `chain=inbound-vip|81|tls|stock.shop.svc.cluster.local|b `) {
		t.Errorf("the log:\n%s", log)
	}
}

// TestServerNamesRefused: who asks for no server that there is, or is no client of TLS, is refused; log and metrics tell why.
func TestServerNamesRefused(t *testing.T) {
	w, ca := newNamedWorld(t)
	w.applyWith(all, configtest.Named("30s", "", "", map[string]string{"a": "a.example", "b": `"*.wide.example"`, "gone": "gone.example"}))
	long := append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xf0}, make([]byte, 0x4000-4)...)
	for range 3 {
		long = append(append(long, 22, 3, 1, 0x40, 0), make([]byte, 0x4000)...)
	}
	for _, tc := range []struct {
		name, server string
		raw          []byte
		want, flag   string
	}{
		{name: "another", server: "c.example", want: `no TLSRoute of the port is for the server \"c.example\"`, flag: "NR"},
		{name: "wildcard's own", server: "wide.example", want: "for the server", flag: "NR"},
		{name: "none", want: "names no server", flag: "NR"},
		{name: "no TLS", raw: []byte("GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"), want: "does not begin with a ClientHello", flag: "DPE"},
		{name: "too long", raw: long, want: "longer than 65536 bytes", flag: "DPE"},
		{name: "no cluster", server: "gone.example", want: "not known to this waypoint", flag: "NC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(w.log.String())
			nc := w.mustTunnel(rawPort)
			defer nc.Close()
			if tc.raw != nil {
				_, _ = nc.Write(tc.raw)
				if got, err := io.ReadAll(nc); err == nil || len(got) > 0 {
					t.Errorf("%q, %v; want a reset", got, err)
				}
			} else {
				c := w.tlsClient(ca, nc, tc.server)
				if tc.server == "" {
					c = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
				}
				want := "unrecognized name"
				if tc.flag == "NC" {
					want = "internal error"
				}
				if err := c.Handshake(); err == nil || err.Error() != "remote error: tls: "+want {
					t.Errorf("error %v; want the alert for %s", err, want)
				}
			}
			await(t, "it is logged", func() bool {
				line := w.log.String()[before:]
				return strings.Contains(line, tc.want) && strings.Contains(line, "response_flags="+tc.flag)
			})
		})
	}
	if got := w.proxy.Counts().Refused.Load(); got != 5 {
		t.Errorf("%d connections counted as refused, want 5", got)
	}
}

// TestServerNameSilence: who says nothing is refused when its time is over, unless there is a chain for everybody.
func TestServerNameSilence(t *testing.T) {
	w, ca := newNamedWorld(t)
	clusters := map[string]string{"a": "a.example"}
	w.applyWith(all, configtest.Named("0.1s", "", "", clusters))
	nc := w.mustTunnel(rawPort)
	defer nc.Close()
	if got, err := io.ReadAll(nc); err == nil || len(got) > 0 {
		t.Errorf("%q, %v; want a reset", got, err)
	}
	await(t, "it is logged", func() bool { return strings.Contains(w.log.String(), "has not said in 100ms which server") })

	w.pod("raw", 3, backendID, func(nc net.Conn) {
		_, _ = io.WriteString(nc, "220 hello\r\n")
		_, _ = io.Copy(nc, nc)
		_ = nc.Close()
	})
	clusters["raw"] = ""
	w.applyWith(all, configtest.Named("0.1s", "raw", "", clusters))
	first := w.mustTunnel(rawPort) // its server speaks first
	defer first.Close()
	b := make([]byte, 11)
	if _, err := io.ReadFull(first, b); err != nil || string(b) != "220 hello\r\n" {
		t.Errorf("%q, %v", b, err)
	}
	plain := w.mustTunnel(rawPort)
	defer plain.Close()
	_, _ = io.WriteString(plain, "EHLO x\r\n")
	b = make([]byte, 19)
	if _, err := io.ReadFull(plain, b); err != nil || string(b) != "220 hello\r\nEHLO x\r\n" {
		t.Errorf("%q, %v", b, err)
	}
	w.applyWith(all, configtest.Named("30s", "raw", "", clusters)) // a slow machine is not silence
	c := w.tlsClient(ca, w.mustTunnel(rawPort), "a.example")
	defer c.Close()
	b = make([]byte, 10)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "this is a\n" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestServerNamesAndPolicy: policies of the port are asked, and asked again when they change.
func TestServerNamesAndPolicy(t *testing.T) {
	w, ca := newNamedWorld(t)
	clusters := map[string]string{"a": "a.example"}
	w.applyWith(all, configtest.Named("30s", "", "", clusters))
	c := w.tlsClient(ca, w.mustTunnel(rawPort), "a.example")
	defer c.Close()
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	w.applyWith(all, configtest.Named("30s", "", denyCurl, clusters))
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a connection that is denied now ended as if it were whole")
	}
	err := w.tlsClient(ca, w.mustTunnel(rawPort), "a.example").Handshake()
	if err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("error %v; want the alert for access denied", err)
	}
	w.applyWith(all, configtest.Named("30s", "", `rules: {action: DENY, policies: {p: {principals: [{any: true}], permissions: [{requested_server_name: {suffix: .wide.example, ignore_case: true}}]}}}`,
		map[string]string{"a": "a.example, b.wide.example"}))
	if err := w.tlsClient(ca, w.mustTunnel(rawPort), "B.Wide.example").Handshake(); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("error %v; want the alert for access denied", err)
	}
	allowed := w.tlsClient(ca, w.mustTunnel(rawPort), "a.example")
	defer allowed.Close()
	if err := allowed.Handshake(); err != nil {
		t.Errorf("a server that no policy names: %v", err)
	}
	await(t, "lines that say why", func() bool { return strings.Count(w.log.String(), "response_flags=RBAC") == 3 })
}

// TestServerName reads names of clients that crypto/tls makes, and what is none.
func TestServerName(t *testing.T) {
	for _, tc := range []struct{ name, server string }{{"a name", "a.example"}, {"none", ""}, {"a long one", strings.Repeat("a.", 120) + "example"}} {
		t.Run(tc.name, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			defer server.Close()
			var sent bytes.Buffer
			done := make(chan error, 1)
			go func() {
				done <- tls.Client(tee{client, &sent}, &tls.Config{ServerName: tc.server, InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
			}()
			got, said, err := serverName(server, patience)
			_ = server.Close()
			<-done
			if err != nil || got != tc.server || !bytes.HasPrefix(sent.Bytes(), said) || len(said) < 100 {
				t.Errorf("%q, %d bytes of %d, %v", got, len(said), sent.Len(), err)
			}
		})
	}
	client, server := net.Pipe()
	defer client.Close()
	if _, _, err := serverName(server, time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("of a silent client: %v", err)
	}
}

// tee keeps what is written.
type tee struct {
	net.Conn
	to *bytes.Buffer
}

func (c tee) Write(p []byte) (int, error) {
	c.to.Write(p)
	return c.Conn.Write(p)
}
