package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// step is a record of any kind.
type step struct {
	kind    byte
	content []byte
	padding int
}

// String is short.
func (s step) String() string {
	return fmt.Sprintf("%d:%x(%d)+%d", s.kind, s.content[:min(len(s.content), 8)], len(s.content), s.padding)
}

// heard is what a reader makes of records.
type heard struct {
	payload []byte
	clean   bool           // the end
	told    tls.AlertError // what the sender is told
}

// TestJudgesAsLibrary sends the same records, good and bad ones, to our reader and to that of crypto/tls.
func TestJudgesAsLibrary(t *testing.T) {
	cert := certificate(t)
	rnd := rand.New(rand.NewPCG(8, 446))
	for i := range 60 {
		role := []string{"client", "server"}[i%2]
		steps := randomSteps(rnd, role)
		ours := judge(t, cert, role, steps, false)
		theirs := judge(t, cert, role, steps, true)
		if !bytes.Equal(ours.payload, theirs.payload) || ours.clean != theirs.clean || ours.told != theirs.told {
			t.Errorf("%d: a %s reads %v: %d bytes, clean %v, tells %v; crypto/tls: %d bytes, clean %v, tells %v", i, role, steps,
				len(ours.payload), ours.clean, ours.told, len(theirs.payload), theirs.clean, theirs.told)
		}
	}
}

// randomSteps are records that the other end of role sends, of which most are good.
func randomSteps(rnd *rand.Rand, role string) []step {
	var steps []step
	for range 1 + rnd.IntN(25) {
		s := step{kind: typeApplication, content: pattern([]int{1, 100, 5000, maxRecordPayload}[rnd.IntN(4)])}
		switch rnd.IntN(16) {
		case 0, 1:
			s = step{kind: typeHandshake, content: []byte{messageKeyUpdate, 0, 0, 1, byte(rnd.IntN(2))}}
		case 2:
			s.content = nil
		case 3:
			s.padding = rnd.IntN(240)
		case 4:
			s.content, s.padding = s.content[:min(len(s.content), 1000)], maxRecordPayload-rnd.IntN(1100)
		case 5:
			s = step{kind: typeAlert, content: []byte{levelWarning, byte(alertUserCanceled)}}
		case 6:
			s = randomBadStep(rnd)
		}
		steps = append(steps, s)
	}
	return append(steps, step{kind: typeAlert, content: []byte{levelWarning, byte(alertCloseNotify)}})
}

// randomBadStep is not one of those for which crypto/tls has an alert of its own choice: a ChangeCipherSpec that is sealed, which it
// takes, a KeyUpdate with a wrong value, and messages that it cannot read.
func randomBadStep(rnd *rand.Rand) step {
	return []step{
		{kind: 0, content: make([]byte, 10)},
		{kind: 24, content: []byte{1}},
		{kind: typeHandshake},
		{kind: typeHandshake, content: []byte{messageKeyUpdate, 0, 0, 1, 0, messageKeyUpdate, 0, 0, 1, 0}},
		{kind: typeHandshake, content: []byte{13, 0, 0, 3, 0, 0, 0}}, // CertificateRequest
		{kind: typeHandshake, content: []byte{20, 0, 0, 1, 0}},       // Finished
		{kind: typeAlert, content: []byte{levelFatal, byte(alertInternalError)}},
		{kind: typeAlert, content: []byte{levelWarning, byte(alertInternalError)}},
		{kind: typeApplication, content: make([]byte, maxRecordPayload+1)},
	}[rnd.IntN(9)]
}

// judge has our side in the other role send records to the reader.
func judge(t *testing.T, cert tls.Certificate, role string, steps []step, library bool) heard {
	t.Helper()
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, SessionTicketsDisabled: true}
	a, b := tcpPair(t)
	var from, to *Conn
	var err, terr error
	var theirs *tls.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		switch {
		case library && role == "client":
			theirs = tls.Client(b, cfg)
			terr = theirs.Handshake()
		case library:
			theirs = tls.Server(b, cfg)
			terr = theirs.Handshake()
		case role == "client":
			if to, terr = Client(t.Context(), b, cfg); terr == nil {
				terr = to.Flush()
			}
		default:
			to, terr = Server(t.Context(), b, func(*tls.ClientHelloInfo) (*tls.Config, error) { return cfg, nil })
		}
	})
	if role == "client" {
		from, err = Server(t.Context(), a, func(*tls.ClientHelloInfo) (*tls.Config, error) { return cfg, nil })
	} else if from, err = Client(t.Context(), a, cfg); err == nil {
		err = from.Flush()
	}
	wg.Wait()
	if err := errors.Join(err, terr); err != nil {
		t.Fatal(err)
	}
	defer from.Release()
	defer from.Abort()
	reader := io.Reader(theirs)
	if to != nil {
		reader = to
		defer to.Release()
		defer to.Abort()
	}
	wg.Go(func() {
		for _, s := range steps {
			play(from, s)
		}
		_ = from.Flush()
	})
	var h heard
	var why error
	h.payload, why = io.ReadAll(reader)
	h.clean = why == nil
	if h.clean || library {
		_ = b.(*net.TCPConn).CloseWrite()
	} else {
		_ = to.sock.closeWrite()
	}
	_, why = io.ReadAll(from)
	h.told = alertOf(why)
	_ = b.Close()
	wg.Wait()
	return h
}

func alertOf(err error) tls.AlertError {
	var alert tls.AlertError
	errors.As(err, &alert)
	return alert
}

// play sends a record, and takes the next keys after it says so. What cannot be sent any more is left out.
func play(c *Conn, s step) {
	r := c.body.(*records)
	inner := append(bytes.Clone(s.content), s.kind)
	inner = append(inner, make([]byte, s.padding)...)
	if r.sock.lockRoom(len(inner)+overhead, 0) != nil {
		return
	}
	defer r.sock.mu.Unlock()
	last := len(inner) - 1
	r.sealLocked(inner[last], inner[:last:last])
	if s.kind == typeHandshake && len(s.content) == 5 && s.content[0] == messageKeyUpdate && s.content[4] < 2 {
		_ = r.out.update()
	}
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	_ = a.SetDeadline(time.Now().Add(patience))
	_ = b.SetDeadline(time.Now().Add(patience))
	return a, b
}
