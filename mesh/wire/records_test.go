package wire

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// own returns the records of c, which must be ours.
func own(t testing.TB, c *Conn) *records {
	t.Helper()
	r, ok := c.body.(*records)
	if !ok {
		t.Fatalf("the records are those of %T", c.body)
	}
	return r
}

// inject sends a record of any kind, with padding.
func inject(t testing.TB, c *Conn, kind byte, content []byte, padding int) {
	t.Helper()
	r := own(t, c)
	inner := append(bytes.Clone(content), kind)
	inner = append(inner, make([]byte, padding)...)
	if err := r.sock.lockRoom(len(inner)+overhead, 0); err != nil {
		t.Fatal(err)
	}
	last := len(inner) - 1
	r.sealLocked(inner[last], inner[:last:last])
	r.sock.mu.Unlock()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// injectRaw sends bytes that are no good record.
func injectRaw(t testing.TB, c *Conn, b []byte) {
	t.Helper()
	if _, err := c.sock.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// The vectors are those of RFC 8448 section 3.
func TestKnownRecord(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	secret := unhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
	payload := make([]byte, 50)
	for i := range payload {
		payload[i] = byte(i)
	}
	want := unhex("1703030043" + "a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a" +
		"6292a2977014bd1e3deae63aeebb21694915e4")
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	sock := newSocket(a)
	c, err := newRecords(sock, true, suiteOf(tls.TLS_AES_128_GCM_SHA256), &secrets{client: secret, server: bytes.Clone(secret)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(payload); err != nil {
		t.Fatal(err)
	}
	if got := sock.out[:sock.outLen]; !bytes.Equal(got, want) {
		t.Errorf("record\n%x, want\n%x", got, want)
	}
	c.wipe()
	sock.drop()
	if !bytes.Equal(secret, make([]byte, len(secret))) {
		t.Error("the secret is still there after the end")
	}
}

// between returns two ends with records of ours under any suite, without a handshake.
func between(t testing.TB, suite uint16) (client, server *Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end := func(nc net.Conn, isClient bool) *Conn {
		_ = nc.SetDeadline(time.Now().Add(patience))
		s := suiteOf(suite)
		sec := &secrets{client: bytes.Repeat([]byte{1}, s.hash.Size()), server: bytes.Repeat([]byte{2}, s.hash.Size())}
		c := &Conn{sock: newSocket(nc)}
		c.sock.cork(true)
		r, err := newRecords(c.sock, isClient, s, sec)
		if err != nil {
			t.Fatal(err)
		}
		c.body = r
		t.Cleanup(func() {
			c.Abort()
			c.Release()
		})
		return c
	}
	return end(a, true), end(b, false)
}

var suites = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

func TestKeysAreReplacedInTime(t *testing.T) {
	for _, suite := range suites {
		t.Run(tls.CipherSuiteName(suite), func(t *testing.T) {
			client, server := between(t, suite)
			own(t, client).maxSeq = 3
			first := bytes.Clone(own(t, client).out.secret)
			data := pattern(1 << 20)
			var wg sync.WaitGroup
			wg.Go(func() {
				for _, p := range [][]byte{data[:7], data[7 : 1<<18], data[1<<18:]} {
					_, _ = client.Write(p[:len(p):len(p)])
				}
				_ = client.Flush()
			})
			receive(t, server, pattern(1<<20))
			wg.Wait()
			in, out := own(t, server).in, own(t, client).out
			if !bytes.Equal(in.secret, out.secret) || bytes.Equal(first, out.secret) || out.seq > 3 {
				t.Errorf("after %d records of the last key; the same at both ends: %v", out.seq, bytes.Equal(in.secret, out.secret))
			}
		})
	}
}

// TestKeyUpdatesBothWays has one side ask for new keys again and again while both send.
func TestKeyUpdatesBothWays(t *testing.T) {
	client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
	first := bytes.Clone(own(t, client).in.secret)
	const rounds = 200
	piece := pattern(3000)
	var wg sync.WaitGroup
	write := func(c *Conn, ask bool) {
		p := bytes.Clone(piece)
		for range rounds {
			if ask {
				r := own(t, c)
				if err := r.sock.lockRoom(overhead+5, 0); err != nil {
					t.Error(err)
					return
				}
				r.sealLocked(typeHandshake, []byte{messageKeyUpdate, 0, 0, 1, 1})
				if err := r.out.update(); err != nil {
					t.Error(err)
				}
				r.sock.mu.Unlock()
			}
			if _, err := c.Write(p); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			if err := c.Flush(); err != nil {
				t.Errorf("flush: %v", err)
			}
		}
	}
	wg.Go(func() { write(client, true) })
	wg.Go(func() { write(server, false) })
	read := func(c *Conn) {
		got := make([]byte, len(piece))
		for i := range rounds {
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, piece) {
				t.Errorf("round %d: wrong bytes, or %v", i, err)
				c.Abort()
				return
			}
		}
	}
	wg.Go(func() { read(server) })
	wg.Go(func() { read(client) })
	wg.Wait()
	send(t, server, bytes.Clone(piece))
	receive(t, client, piece)
	if bytes.Equal(first, own(t, client).in.secret) {
		t.Error("who was asked for new keys has none")
	}
}

// TestRefusals sends what no peer may send: the reader says what is wrong, and the sender is told by an alert.
func TestRefusals(t *testing.T) {
	ticket := func(n int) []byte {
		return append([]byte{messageSessionTicket, 0, byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	for name, c := range map[string]struct {
		send func(t *testing.T, from *Conn)
		want string
		to   string // the client, if set
	}{
		"handshake message without content": {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, nil, 0) }, "unexpected message", ""},
		"no content type":                   {func(t *testing.T, c *Conn) { inject(t, c, 0, nil, 100) }, "unexpected message", ""},
		"unknown content type":              {func(t *testing.T, c *Conn) { inject(t, c, 99, []byte("x"), 0) }, "unexpected message", ""},
		"change cipher spec, sealed":        {func(t *testing.T, c *Conn) { inject(t, c, 20, []byte{1}, 0) }, "unexpected message", ""},
		"change cipher spec, in plain":      {func(t *testing.T, c *Conn) { injectRaw(t, c, []byte{20, 3, 3, 0, 1, 1}) }, "unexpected message", ""},
		"alert in plain":                    {func(t *testing.T, c *Conn) { injectRaw(t, c, []byte{21, 3, 3, 0, 2, 2, 40}) }, "unexpected message", ""},
		"wrong version":                     {func(t *testing.T, c *Conn) { injectRaw(t, c, append([]byte{23, 3, 1, 0, 20}, make([]byte, 20)...)) }, "protocol version", ""},
		"too large when sealed":             {func(t *testing.T, c *Conn) { injectRaw(t, c, []byte{23, 3, 3, 0x41, 1}) }, "record overflow", ""},
		"too large when opened":             {func(t *testing.T, c *Conn) { inject(t, c, typeApplication, make([]byte, maxRecordPayload+1), 0) }, "record overflow", ""},
		"too large with padding":            {func(t *testing.T, c *Conn) { inject(t, c, typeApplication, make([]byte, 100), maxRecordPayload-99) }, "record overflow", ""},
		"shorter than a tag":                {func(t *testing.T, c *Conn) { injectRaw(t, c, append([]byte{23, 3, 3, 0, 16}, make([]byte, 16)...)) }, "bad record MAC", ""},
		"forged":                            {func(t *testing.T, c *Conn) { injectRaw(t, c, append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...)) }, "bad record MAC", ""},
		"alert of three bytes":              {func(t *testing.T, c *Conn) { inject(t, c, typeAlert, []byte{2, 40, 0}, 0) }, "decoding", ""},
		"a new handshake":                   {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, []byte{1, 0, 0, 1, 0}, 0) }, "unexpected message", ""},
		"ticket from a client":              {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, ticket(20), 0) }, "unexpected message", ""},
		"ticket without content":            {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, ticket(0), 0) }, "unexpected message", "client"},
		"ticket of 16 MiB":                  {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, []byte{4, 255, 255, 255}, 0) }, "internal error", "client"},
		"key update of two bytes":           {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, []byte{24, 0, 0, 2, 0, 0}, 0) }, "decod", ""},
		"key update with a wrong value":     {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, []byte{24, 0, 0, 1, 2}, 0) }, "illegal parameter", ""},
		"message behind a key update":       {func(t *testing.T, c *Conn) { inject(t, c, typeHandshake, []byte{24, 0, 0, 1, 0, 24}, 0) }, "unexpected message", ""},
		"payload within a message": {func(t *testing.T, c *Conn) {
			inject(t, c, typeHandshake, []byte{24, 0}, 0)
			inject(t, c, typeApplication, []byte("x"), 0)
		}, "unexpected message", ""},
		"alert within a message": {func(t *testing.T, c *Conn) {
			inject(t, c, typeHandshake, ticket(20)[:10], 0)
			inject(t, c, typeAlert, []byte{1, 0}, 0)
		}, "unexpected message", "client"},
		"empty records without end": {func(t *testing.T, c *Conn) {
			for range maxUseless + 1 {
				inject(t, c, typeApplication, nil, 1)
			}
		}, "unexpected message", ""},
		"tickets without end": {func(t *testing.T, c *Conn) {
			for range maxUseless + 1 {
				inject(t, c, typeHandshake, ticket(20), 0)
			}
		}, "unexpected message", "client"},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := between(t, tls.TLS_AES_128_GCM_SHA256)
			if c.to == "client" {
				from, to = to, from
			}
			inject(t, from, typeApplication, []byte("good"), 0)
			receive(t, to, []byte("good"))
			c.send(t, from)
			n, err := to.Read(make([]byte, maxRecordPayload+tagSize+100))
			if n != 0 || err == nil || !strings.HasPrefix(err.Error(), "local error: tls: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("read: %d, %v; want %q", n, err, c.want)
			}
			if _, again := to.Read(make([]byte, 100)); again != err {
				t.Errorf("read again: %v", again)
			}
			if _, werr := to.Write([]byte("x")); werr == nil {
				t.Error("written after a fatal alert")
			}
			if _, err := from.Read(make([]byte, 100)); err == nil || !strings.HasPrefix(err.Error(), "remote error: tls: ") ||
				!strings.Contains(err.Error(), c.want) {
				t.Errorf("the sender reads: %v; want %q", err, c.want)
			}
		})
	}
}

// TestOddButRight sends what is allowed and unusual.
func TestOddButRight(t *testing.T) {
	for name, send := range map[string]func(t *testing.T, c *Conn){
		"padding": func(t *testing.T, c *Conn) { inject(t, c, typeApplication, []byte("fine"), 1000) },
		"most padding": func(t *testing.T, c *Conn) {
			inject(t, c, typeApplication, []byte("fi"), maxRecordPayload-2)
			inject(t, c, typeApplication, []byte("ne"), 0)
		},
		"empty records": func(t *testing.T, c *Conn) {
			for range maxUseless {
				inject(t, c, typeApplication, nil, 0)
			}
			inject(t, c, typeApplication, []byte("fine"), 0)
		},
		"tickets, whole and in pieces": func(t *testing.T, c *Conn) {
			two := append([]byte{4, 0, 0, 3, 1, 2, 3}, 4, 0, 0, 2, 1, 2)
			inject(t, c, typeHandshake, two, 0)
			for i := range two {
				inject(t, c, typeHandshake, two[i:i+1], 0)
			}
			inject(t, c, typeApplication, []byte("fine"), 0)
		},
		"key update in pieces": func(t *testing.T, c *Conn) {
			inject(t, c, typeHandshake, []byte{24, 0}, 0)
			inject(t, c, typeHandshake, []byte{0, 1}, 0)
			inject(t, c, typeHandshake, []byte{0}, 0)
			if err := own(t, c).out.update(); err != nil {
				t.Error(err)
			}
			inject(t, c, typeApplication, []byte("fine"), 0)
		},
		"user canceled": func(t *testing.T, c *Conn) {
			inject(t, c, typeAlert, []byte{1, 90}, 0)
			inject(t, c, typeApplication, []byte("fine"), 0)
		},
		"record after record into a small buffer": func(t *testing.T, c *Conn) {
			for _, b := range []byte("fine") {
				inject(t, c, typeApplication, []byte{b}, 0)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
			send(t, server)
			if err := server.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			receive(t, client, []byte("fine"))
			if n, err := client.Read(make([]byte, 10)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
		})
	}
}

func TestTruncation(t *testing.T) {
	for name, cut := range map[string]int{"between records": 0, "in a header": 3, "in a record": 20} {
		t.Run(name, func(t *testing.T) {
			client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
			injectRaw(t, client, append([]byte{23, 3, 3, 1, 0}, make([]byte, 100)...)[:cut])
			_ = client.sock.closeWrite()
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			if err := server.WaitReadable(); err != want {
				t.Errorf("wait: %v, want %v", err, want)
			}
			if _, err := server.Read(make([]byte, 10)); err != want {
				t.Errorf("read: %v, want %v", err, want)
			}
		})
	}
}

func TestReadsOfAnySize(t *testing.T) {
	client, server := between(t, tls.TLS_CHACHA20_POLY1305_SHA256)
	data := pattern(300_000)
	go func() {
		for p := pattern(300_000); len(p) > 0; {
			n := min(len(p), 1+len(p)%20_000)
			_, _ = client.Write(p[:n])
			p = p[n:]
		}
		_ = client.Flush()
	}()
	for size := 1; len(data) > 0; size = size*3 + 1 {
		p := make([]byte, size%40_000+1)
		n, err := server.Read(p)
		if err != nil || !bytes.Equal(p[:n], data[:n]) {
			t.Fatalf("read of %d: %d, %v", len(p), n, err)
		}
		data = data[n:]
	}
}

func TestWriteLeavesItsBytesAsTheyWere(t *testing.T) {
	client, server := between(t, tls.TLS_AES_256_GCM_SHA384)
	data := pattern(70_000)
	if _, err := client.Write(data[:50_000]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, pattern(70_000)) {
		t.Error("a write has changed what it was given, or what is behind it")
	}
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	receive(t, server, pattern(70_000)[:50_000])
}

func TestNoAllocationPerRecord(t *testing.T) {
	client, server := between(t, tls.TLS_AES_128_GCM_SHA256)
	data, got := pattern(3*maxRecordPayload + 1)[:3*maxRecordPayload], make([]byte, 3*maxRecordPayload+tagSize+1)
	n := testing.AllocsPerRun(200, func() {
		_, err := client.Write(data)
		if err = errors.Join(err, client.Flush()); err != nil {
			t.Error(err)
		}
		for n := 0; n < len(data); {
			k, err := server.Read(got[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	})
	if n > 1 {
		t.Errorf("%v allocations for three records there", n)
	}
}

// withLibrary has Conn speak with crypto/tls, under both configurations as they are.
func withLibrary(t *testing.T, role string, ourCfg, theirCfg *tls.Config) (*Conn, *tls.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = a.SetDeadline(time.Now().Add(patience))
	_ = b.SetDeadline(time.Now().Add(patience))
	var ours *Conn
	var theirs *tls.Conn
	var wg sync.WaitGroup
	var ourErr error
	wg.Go(func() {
		if role == "client" {
			ours, ourErr = Client(t.Context(), a, ourCfg)
		} else {
			ours, ourErr = Server(t.Context(), a, func(*tls.ClientHelloInfo) (*tls.Config, error) { return ourCfg, nil })
		}
		if ourErr == nil {
			ourErr = ours.Flush()
		}
	})
	if role == "client" {
		theirs = tls.Server(b, theirCfg)
	} else {
		theirs = tls.Client(b, theirCfg)
	}
	err = theirs.Handshake()
	wg.Wait()
	if err := errors.Join(err, ourErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ours.Abort()
		ours.Release()
		_ = theirs.Close()
	})
	return ours, theirs
}

// talk sends a megabyte each way and then ends both directions.
func talk(t *testing.T, ours *Conn, theirs *tls.Conn) {
	t.Helper()
	data := pattern(1 << 20)
	var wg sync.WaitGroup
	wg.Go(func() {
		got := make([]byte, len(data))
		if _, err := io.ReadFull(theirs, got); err != nil || !bytes.Equal(got, data) {
			t.Errorf("crypto/tls reads wrong bytes, or %v", err)
		}
		if _, err := theirs.Write(data); err != nil {
			t.Errorf("crypto/tls: write: %v", err)
		}
		if err := theirs.CloseWrite(); err != nil {
			t.Errorf("crypto/tls: close: %v", err)
		}
		if n, err := theirs.Read(got); n != 0 || err != io.EOF {
			t.Errorf("crypto/tls reads %d, %v at the end", n, err)
		}
	})
	send(t, ours, pattern(1<<20))
	receive(t, ours, data)
	if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v at the end", n, err)
	}
	if err := ours.CloseWrite(); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
}

// fips is set for the test's own process in FIPS 140-3 mode.
const fips = "AMBIT_TEST_FIPS"

func TestWithLibrary(t *testing.T) {
	cert := certificate(t)
	for name, c := range map[string]struct {
		ours, theirs *tls.Config
		library      bool // crypto/tls goes on
	}{
		"as the mesh has it":  {&tls.Config{SessionTicketsDisabled: true}, &tls.Config{SessionTicketsDisabled: true}, false},
		"the peer's tickets":  {&tls.Config{SessionTicketsDisabled: true}, &tls.Config{}, false},
		"TLS 1.2":             {&tls.Config{SessionTicketsDisabled: true}, &tls.Config{MaxVersion: tls.VersionTLS12}, true},
		"a key log of theirs": {&tls.Config{SessionTicketsDisabled: true, KeyLogWriter: io.Discard}, &tls.Config{}, true},
	} {
		for _, role := range []string{"client", "server"} {
			t.Run(name+", "+role, func(t *testing.T) {
				ourCfg, theirCfg := c.ours.Clone(), c.theirs.Clone()
				for _, cfg := range []*tls.Config{ourCfg, theirCfg} {
					cfg.InsecureSkipVerify = true
					cfg.Certificates = []tls.Certificate{cert}
					cfg.ClientAuth = tls.RequireAnyClientCert
				}
				if role == "server" && name == "TLS 1.2" {
					t.Skip("Server takes TLS 1.3 only")
				}
				ours, theirs := withLibrary(t, role, ourCfg, theirCfg)
				_, library := ours.body.(*library)
				if want := c.library || os.Getenv(fips) != ""; library != want {
					t.Errorf("crypto/tls goes on: %v, want %v", library, want)
				}
				if n := len(ours.ConnectionState().PeerCertificates); n != 1 {
					t.Errorf("%d certificates of the peer", n)
				}
				if ourCfg.KeyLogWriter != c.ours.KeyLogWriter {
					t.Error("the configuration was changed")
				}
				if r, ok := ours.body.(*records); ok {
					r.maxSeq = 20
				}
				talk(t, ours, theirs)
			})
		}
	}
	t.Run("a server's own tickets", func(t *testing.T) {
		ours, theirs := withLibrary(t, "server", &tls.Config{Certificates: []tls.Certificate{cert}}, &tls.Config{InsecureSkipVerify: true})
		if _, library := ours.body.(*library); !library {
			t.Error("records of ours, though a ticket was sealed with their keys")
		}
		talk(t, ours, theirs)
	})
}

// TestFIPS has crypto/tls go on with its own records in FIPS 140-3 mode.
func TestFIPS(t *testing.T) {
	if os.Getenv(fips) != "" {
		t.Skip("is in that mode")
	}
	for _, mode := range []string{"on", "only"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWithLibrary$", "-test.v", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140="+mode, fips+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestWithLibrary") {
			t.Errorf("fips140=%s: %v\n%s", mode, err, out)
		}
	}
}

func TestAlertsHaveTheirNames(t *testing.T) {
	cert := certificate(t)
	ours, theirs := withLibrary(t, "client", &tls.Config{InsecureSkipVerify: true}, &tls.Config{Certificates: []tls.Certificate{cert}})
	if _, err := theirs.NetConn().Write(append([]byte{23, 3, 3, 0, 40}, make([]byte, 40)...)); err != nil {
		t.Fatal(err)
	}
	_, err := ours.Read(make([]byte, 100))
	var alert tls.AlertError
	if !errors.As(err, &alert) || alert != alertBadRecordMAC {
		t.Errorf("read: %v", err)
	}
	if _, err := theirs.Read(make([]byte, 100)); err == nil || err.Error() != "remote error: tls: bad record MAC" {
		t.Errorf("crypto/tls reads: %v", err)
	}
}

// A server that does not like the client's certificate says so when the client's handshake is over.
func TestRefusedCertificate(t *testing.T) {
	cert := certificate(t)
	a, b := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := Server(t.Context(), b, func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true, ClientAuth: tls.RequireAnyClientCert}, nil
		})
		if err == nil {
			t.Error("the server took a client without certificate")
		}
	})
	client, err := Client(t.Context(), a, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { _ = client.Flush() })
	_, err = client.Read(make([]byte, 10))
	if want := "remote error: tls: certificate required"; err == nil || err.Error() != want {
		t.Errorf("read: %v, want %s", err, want)
	}
	client.Abort()
	wg.Wait()
	client.Release()
}
