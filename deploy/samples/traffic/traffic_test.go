package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ambit-mesh/ambit/mesh/leaktest"
)

// start runs a server on loopback and returns host:port by default port. The server is ended, and must end without an
// error and without a goroutine left, when the test does.
func start(t *testing.T) map[int]string {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan map[int]net.Addr, 1)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ServeConfig{
			Host:      "127.0.0.1",
			Ports:     map[int]int{PortHTTP: 0, PortEcho: 0, PortGreeter: 0, PortTool: 0, PortGRPC: 0},
			Listening: func(addrs map[int]net.Addr) { listening <- addrs },
			Logger:    slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		leaktest.Check(t, ignore)
	})
	select {
	case addrs := <-listening:
		byPort := map[int]string{}
		for port, addr := range addrs {
			byPort[port] = addr.String()
		}
		return byPort
	case err := <-done:
		done <- err
		t.Fatalf("Serve ended: %v", err)
	}
	return nil
}

// TestHTTP asks the server by both versions of HTTP: who it is, a path that fails every other time, and one that is slow.
func TestHTTP(t *testing.T) {
	addr := start(t)[PortHTTP]
	for _, http2 := range []bool{false, true} {
		report, err := HTTP(t.Context(), HTTPRequest{URL: "http://" + addr + "/a/b?headers", Host: "front", Header: map[string]string{"X-Colour": "red"}, HTTP2: http2})
		if err != nil || len(report.Replies) != 1 {
			t.Fatalf("report %+v, %v", report, err)
		}
		proto := "HTTP/1.1"
		if http2 {
			proto = "HTTP/2.0"
		}
		if r := report.Replies[0]; r.Status != 200 || r.Proto != proto || r.Who.Request != "GET /a/b?headers" || r.Who.Host != "front" || r.Who.Header.Get("X-Colour") != "red" {
			t.Errorf("reply %+v", r)
		}
	}
	report, err := HTTP(t.Context(), HTTPRequest{URL: "http://" + addr + PathFlaky, Count: 4})
	if err != nil || len(report.Replies) != 4 {
		t.Fatalf("report %+v, %v", report, err)
	}
	for i, want := range []int{503, 200, 503, 200} {
		if got := report.Replies[i].Status; got != want {
			t.Errorf("reply %d has status %d, want %d", i, got, want)
		}
	}
	for pass, want := range map[string]int{"": StatusNoPass, "Bearer x": 200} {
		header := map[string]string{}
		if pass != "" {
			header[FieldPass] = pass
		}
		report, err = HTTP(t.Context(), HTTPRequest{URL: "http://" + addr + PathGate + "any/path", Header: header})
		if err != nil || report.Replies[0].Status != want || report.Replies[0].Header.Get("authorization") != pass {
			t.Errorf("report %+v, %v; want status %d", report, err, want)
		}
	}
	report, err = HTTP(t.Context(), HTTPRequest{URL: "http://" + addr + PathSay + "?text=%7B%22pod%22:%22said%22%7D"})
	if err != nil || report.Replies[0].Who.Pod != "said" {
		t.Errorf("report %+v, %v; want what was to be said", report, err)
	}
	report, err = HTTP(t.Context(), HTTPRequest{URL: "http://" + addr + PathSlow, Timeout: 50 * time.Millisecond})
	if err != nil || report.Replies[0].Kind != KindTimeout {
		t.Errorf("report %+v, %v; want a reply that timed out", report, err)
	}
}

// TestGrace ends a server: its port is closed at once, and what is open goes on for the grace, and no longer.
func TestGrace(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Minute} {
		ctx, cancel := context.WithCancel(t.Context())
		listening := make(chan map[int]net.Addr, 1)
		done := make(chan error, 1)
		go func() {
			done <- Serve(ctx, ServeConfig{
				Host: "127.0.0.1", Ports: map[int]int{PortHTTP: 0, PortEcho: 0, PortGreeter: 0, PortTool: 0, PortGRPC: 0},
				Listening: func(addrs map[int]net.Addr) { listening <- addrs }, Grace: grace, Logger: slog.New(slog.DiscardHandler),
			})
		}()
		addr := (<-listening)[PortEcho].String()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(DefaultTimeout))
		exchange := func() error {
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			_, err := io.ReadFull(conn, make([]byte, 1))
			return err
		}
		if err := exchange(); err != nil {
			t.Fatal(err)
		}
		cancel()
		for closed, deadline := false, time.Now().Add(DefaultTimeout); !closed; {
			other, err := net.Dial("tcp", addr)
			if closed = err != nil; !closed {
				other.Close()
				if time.Now().After(deadline) {
					t.Fatal("the port is still open")
				}
			}
		}
		if grace > 0 {
			if err := exchange(); err != nil {
				t.Errorf("within the grace, an open connection: %v", err)
			}
			conn.Close()
		}
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if grace == 0 {
			if err := exchange(); err == nil {
				t.Error("without a grace, an open connection outlives the server")
			}
		}
	}
}

// TestResetKinds: whatever a program does with a connection that was reset, the kind is the same.
func TestResetKinds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	server.Close()
	_, err = conn.Read(make([]byte, 1))
	if kind := KindOf(err); kind != KindReset {
		t.Errorf("to read: %q (%v)", kind, err)
	}
	_, err = conn.Write([]byte("x"))
	if kind := KindOf(err); kind != KindReset {
		t.Errorf("to write: %q (%v)", kind, err)
	}
	err = conn.(*net.TCPConn).CloseWrite()
	if kind := KindOf(err); kind != KindReset {
		t.Errorf("to end: %q (%v)", kind, err)
	}
}

func TestDial(t *testing.T) {
	addr := start(t)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	report, err := Dial(t.Context(), DialRequest{Label: "unit", Timeout: 30 * time.Second, Attempts: []Attempt{
		{addr[PortHTTP], ProtocolHTTP},
		{addr[PortTool], ProtocolWho},
		{addr[PortEcho], ProtocolEcho},
		{addr[PortGreeter], ProtocolGreeter},
		{nobody.Addr().String(), ProtocolEcho},
		{addr[PortGreeter], ProtocolEcho},
		{addr[PortEcho], ProtocolHTTP}, // the request comes back
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Kind{"", "", "", "", KindRefused, KindWrong, KindOther}
	for i, outcome := range report.Outcomes {
		if outcome.Kind != want[i] {
			t.Errorf("%s to %s: kind %q (%s), want %q", outcome.Protocol, outcome.Target, outcome.Kind, outcome.Error, want[i])
		}
		if i != 2 && outcome.Kind == "" && outcome.Server.Client != outcome.Local {
			t.Errorf("%s: the server saw %q, the client is %q", outcome.Protocol, outcome.Server.Client, outcome.Local)
		}
	}
	// Echo is silent until the client speaks.
	report, err = Dial(t.Context(), DialRequest{Label: "unit", Timeout: 300 * time.Millisecond, Attempts: []Attempt{{addr[PortEcho], ProtocolGreeter}}})
	if err != nil {
		t.Fatal(err)
	}
	if kind := report.Outcomes[0].Kind; kind != KindTimeout {
		t.Errorf("greeter to a silent server: kind %q, want %q", kind, KindTimeout)
	}
}

func TestLoad(t *testing.T) {
	addr := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := Load(ctx, LoadRequest{Targets: []string{addr[PortEcho]}, Rate: 200, Hold: 5, Every: 10 * time.Millisecond}, func() {
		time.AfterFunc(3*time.Second, cancel) // what is asked for takes a tenth of that
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Cut) > 0 || report.FailedTotal() > 0 {
		t.Errorf("cut %v, failed %v, want none", report.Cut, report.Failures)
	}
	if report.Held != 5 || report.Exchanges < 50 || report.Opened < 60 || report.Opened != report.Due {
		t.Errorf("held %d, exchanges %d, opened %d of %d: too few", report.Held, report.Exchanges, report.Opened, report.Due)
	}
	if report.Median <= 0 || report.Slowest < report.P99 || report.P99 < report.Median || report.Stall <= 0 {
		t.Errorf("times are not sorted: %+v", report)
	}
}

func TestHTTPLoad(t *testing.T) {
	addr := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := HTTPLoad(ctx, HTTPLoadRequest{Targets: []string{addr[PortHTTP]}, Clients: 3, Hold: 2, Every: 10 * time.Millisecond}, func() {
		time.AfterFunc(3*time.Second, cancel)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Cut) > 0 || report.FailedTotal() > 0 {
		t.Errorf("cut %v, failed %v, want none", report.Cut, report.Failures)
	}
	if report.Held != 4 || report.Exchanges < 20 || report.Opened < 20 || report.Median <= 0 {
		t.Errorf("held %d, exchanges %d, requests %d: too few", report.Held, report.Exchanges, report.Opened)
	}
}

// TestHTTPLoadSeesHarm: what a proxy in between cuts is in the report.
func TestHTTPLoadSeesHarm(t *testing.T) {
	addr := start(t)
	b := newBreaker(t, addr[PortHTTP])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := HTTPLoad(ctx, HTTPLoadRequest{Targets: []string{b.listener.Addr().String()}, Clients: 1, Hold: 1, Every: 10 * time.Millisecond, Timeout: 10 * time.Second}, func() {
		for range 2 { // what is held
			conn := <-b.conns
			_ = conn.SetLinger(0)
			conn.Close()
		}
		b.listener.Close()
		time.AfterFunc(3*time.Second, cancel)
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Cut) != 2 {
		t.Errorf("cut %v, want the WebSocket and the stream", report.Cut)
	}
	if report.Failed[KindRefused] == 0 || report.FailedTotal() > report.Opened {
		t.Errorf("failed %v of %d, want refused ones", report.Failed, report.Opened)
	}
}

// breaker is a TCP proxy that can be made to harm its connections.
type breaker struct {
	listener net.Listener
	conns    chan *net.TCPConn
}

func newBreaker(t *testing.T, target string) *breaker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breaker{listener: l, conns: make(chan *net.TCPConn, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", target)
			if err != nil {
				conn.Close()
				continue
			}
			go func() { _, _ = io.Copy(back, conn); back.(*net.TCPConn).CloseWrite() }()
			go func() { _, _ = io.Copy(conn, back); conn.(*net.TCPConn).CloseWrite() }()
			b.conns <- conn.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return b
}

// TestLoadNoticesHarm has a load whose held connections are cut one by RST and one by FIN, and whose server then goes away.
func TestLoadNoticesHarm(t *testing.T) {
	addr := start(t)
	b := newBreaker(t, addr[PortEcho])
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := Load(ctx, LoadRequest{Targets: []string{b.listener.Addr().String()}, Rate: 100, Hold: 3, Every: 10 * time.Millisecond, Timeout: 10 * time.Second}, func() {
		first, second := <-b.conns, <-b.conns
		_ = first.SetLinger(0)
		first.Close()
		_ = second.CloseWrite()
		b.listener.Close()
		time.AfterFunc(3*time.Second, cancel) // it notices at the next exchange
	})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[Kind]int{}
	for _, cut := range report.Cut {
		kinds[cut.Kind]++
	}
	if len(report.Cut) != 2 || kinds[KindReset] != 1 || kinds[KindEOF] != 1 {
		t.Errorf("cut %v, want one reset and one end", report.Cut)
	}
	if report.Failed[KindRefused] == 0 || report.FailedTotal() > report.Opened {
		t.Errorf("failed %v of %d, want refused ones", report.Failed, report.Opened)
	}
	if _, err := Load(t.Context(), LoadRequest{Targets: []string{b.listener.Addr().String()}, Hold: 1}, func() { t.Error("ready") }); err == nil {
		t.Error("Load with nobody to hold a connection to did not fail")
	}
}

func TestHalfClose(t *testing.T) {
	addr := start(t)
	report, err := HalfClose(t.Context(), HalfCloseRequest{Target: addr[PortTool], Pause: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if report != (HalfCloseReport{}) {
		t.Errorf("report %+v, want no failure", report)
	}
}

// TestHalfCloseNoticesAClosedSide sends both connections through a proxy that takes one side's end for the whole connection's.
func TestHalfCloseNoticesAClosedSide(t *testing.T) {
	addr := start(t)
	l := closeBoth(t, addr[PortTool])
	report, err := HalfClose(t.Context(), HalfCloseRequest{Target: l, Pause: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if report.ClientFirst == "" || report.ServerFirst == "" {
		t.Errorf("report %+v, want both to fail", report)
	}
}

// closeBoth is a proxy that closes both sides when one ends.
func closeBoth(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", target)
			if err != nil {
				conn.Close()
				continue
			}
			both := func() { conn.Close(); back.Close() }
			go func() { _, _ = io.Copy(back, conn); both() }()
			go func() { _, _ = io.Copy(conn, back); both() }()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestReset(t *testing.T) {
	addr := start(t)
	report, err := Reset(t.Context(), ResetRequest{Target: addr[PortTool]})
	if err != nil {
		t.Fatal(err)
	}
	if want := (ResetReport{ByClient: KindReset, ByServer: KindReset}); report != want {
		t.Errorf("report %+v, want %+v", report, want)
	}
	// A proxy that turns RST into FIN is noticed.
	report, err = Reset(t.Context(), ResetRequest{Target: newBreaker(t, addr[PortTool]).listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if want := (ResetReport{ByClient: KindEOF, ByServer: KindEOF}); report != want {
		t.Errorf("report through a proxy that hides resets: %+v, want %+v", report, want)
	}
}

func TestTransfer(t *testing.T) {
	addr := start(t)
	report, err := Transfer(t.Context(), TransferRequest{Target: addr[PortTool], Bytes: 20 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if report.Up <= 0 || report.Down <= 0 {
		t.Errorf("report %+v", report)
	}
	if _, err := Transfer(t.Context(), TransferRequest{Target: addr[PortEcho], Bytes: 1 << 10}); err == nil {
		t.Error("Transfer with a server that is none did not fail")
	}
}

func TestBurst(t *testing.T) {
	addr := start(t)
	report, err := Burst(t.Context(), BurstRequest{Targets: []string{addr[PortEcho]}, Connections: 300})
	if err != nil {
		t.Fatal(err)
	}
	if report.OK != 300 {
		t.Errorf("report %+v, want 300 ok", report)
	}
}

func TestRun(t *testing.T) {
	addr := start(t)
	stdin, stop := io.Pipe()
	printed, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(t.Context(), []string{VerbLoad, fmt.Sprintf(`{"targets":[%q],"rate":50,"hold":2}`, addr[PortEcho])}, stdin, stdout, io.Discard)
		stdout.Close()
	}()
	decoder := json.NewDecoder(printed)
	var ready Ready
	var report LoadReport
	if err := decoder.Decode(&ready); err != nil || !ready.Ready {
		t.Fatalf("first line: %+v, %v", ready, err)
	}
	time.AfterFunc(2*time.Second, func() { fmt.Fprintln(stop, "stop") }) // one connection takes a fiftieth of a second
	if err := decoder.Decode(&report); err != nil {
		t.Fatalf("second line: %v", err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if report.Held != 2 || report.Opened == 0 {
		t.Errorf("report %+v", report)
	}
	for _, args := range [][]string{nil, {"fly"}, {VerbDial}, {VerbDial, `{"bogus":1}`}, {VerbLoad, `{}`}} {
		if err := Run(t.Context(), args, strings.NewReader(""), io.Discard, io.Discard); err == nil {
			t.Errorf("Run(%q) did not fail", args)
		}
	}
}

// TestClosePort has clients wait at a port that closes, after its deadline: each of them is served.
func TestClosePort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener := l.(*net.TCPListener)
	if err := listener.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	conns, err := closePort(listener)
	if err != nil || len(conns) != len(clients) {
		t.Fatalf("closePort: %d connections, %v; want %d", len(conns), err, len(clients))
	}
	for _, conn := range conns {
		if _, err := conn.Write([]byte{1}); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	for _, c := range clients {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("a client that waited: %v", err)
		}
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}
