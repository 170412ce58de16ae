package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

// pods is what a depot is told of pods.
type pods struct {
	mu            sync.Mutex
	known, served bool
}

func (p *pods) set(known, served bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.served = known, served
}

func (p *pods) Known(NetNS) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known
}

func (p *pods) Served(NetNS) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.served
}

// world is a depot, its server, and who deposits.
type world struct {
	t     *testing.T
	path  string
	depot *Depot
	pods  *pods
	ns    NetNS
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: to ask for a socket's network namespace needs root")
	}
	w := &world{t: t, path: filepath.Join(t.TempDir(), "depot.sock"), pods: &pods{known: true}}
	w.depot = NewDepot(DepotConfig{Pods: w.pods, Logger: slog.New(slog.DiscardHandler)})
	w.serve(w.depot)
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	w.ns = NetNS{Dev: st.Dev, Ino: st.Ino}
	t.Cleanup(w.depot.Close)
	return w
}

func (w *world) serve(h Holder) {
	ln, err := Listen(w.path)
	w.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		s := Server{Name: "holder", Holder: h, Logger: slog.New(slog.DiscardHandler)}
		done <- s.Serve(ctx, ln)
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) dial() *Client {
	w.t.Helper()
	c, err := Dial(context.Background(), w.path, "client", 0)
	w.must(err)
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for tick := time.NewTicker(time.Millisecond); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// duplicate returns a Socket of what the net package made.
func (w *world) duplicate(s interface {
	File() (*os.File, error)
}) Socket {
	w.t.Helper()
	f, err := s.File()
	w.must(err)
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	w.must(err)
	unix.SetNonblock(fd, true) // File has made it blocking, for all that have it
	_, name, err := Inspect(fd)
	w.must(err)
	return Socket{Name: name, FD: fd}
}

func (w *world) listen() (*net.TCPListener, Socket) {
	w.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	w.t.Cleanup(func() { ln.Close() })
	s := w.duplicate(ln.(*net.TCPListener))
	w.t.Cleanup(s.Close)
	return ln.(*net.TCPListener), s
}

// TestQueueSurvivesItsProcess deposits a listener and a UDP socket, fills their queues, and ends the session and the
// sockets of who made them: the next one finds what was queued.
func TestQueueSurvivesItsProcess(t *testing.T) {
	w := newWorld(t)
	ln, tcp := w.listen()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	w.must(err)
	udp := w.duplicate(pc)
	first := w.dial()
	w.must(first.Deposit(w.ns, []Socket{tcp, udp}))
	var clients []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", ln.Addr().String())
		w.must(err)
		defer c.Close()
		clients = append(clients, c)
	}
	asker, err := net.Dial("udp", pc.LocalAddr().String())
	w.must(err)
	defer asker.Close()
	io.WriteString(asker, "question")
	ln.Close()
	tcp.Close()
	pc.Close()
	udp.Close()
	first.Close()
	second := w.dial()
	var lent Lent
	w.eventually("the sockets have no owner", func() bool {
		var err error
		lent, err = second.Lend(w.ns)
		w.must(err)
		if !lent.Orphaned {
			closeSockets(lent.Sockets)
		}
		return lent.Orphaned
	})
	if len(lent.Sockets) != 2 {
		t.Fatalf("lent %v, want two", lent.Sockets)
	}
	w.must(second.Taken(w.ns))
	again, err := lent.Sockets[0].Listener()
	w.must(err)
	defer again.Close()
	again.SetDeadline(time.Now().Add(patience))
	for range clients {
		c, err := again.Accept()
		w.must(err)
		io.WriteString(c, "x")
		c.Close()
	}
	for _, c := range clients {
		if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
			t.Errorf("client got %q, %v", b, err)
		}
	}
	next, err := lent.Sockets[1].PacketConn()
	w.must(err)
	defer next.Close()
	next.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, _, err := next.ReadFromUDP(b)
	if err != nil || string(b[:n]) != "question" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	third := w.dial()
	lent, err = third.Lend(w.ns)
	w.must(err)
	closeSockets(lent.Sockets)
	if lent.Orphaned {
		t.Error("sockets that were taken are said to be served by nobody")
	}
}

// TestWhatIsNotKept goes through the reasons for which a depot gives a socket up.
func TestWhatIsNotKept(t *testing.T) {
	for _, c := range []struct {
		name                 string
		known, served, owned bool
		age                  time.Duration
		kept                 bool
	}{
		{"a proxy has it", true, true, true, time.Hour, true},
		{"its proxy has died", true, false, false, holdLimit - time.Second, true},
		{"nobody has come for it", true, false, false, holdLimit, false},
		{"another proxy has its own", true, true, false, sweepInterval, false},
		{"another proxy may be about to deposit", true, true, false, sweepInterval - time.Second, true},
		{"the pod is not known", false, false, true, sweepInterval, false},
		{"the pod may be about to be known", false, false, true, sweepInterval - time.Second, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.pods.set(c.known, c.served)
			_, tcp := w.listen()
			client := w.dial()
			w.must(client.Deposit(w.ns, []Socket{tcp}))
			begin := time.Now()
			if !c.owned {
				client.Close()
				w.eventually("it has no owner", func() bool {
					w.depot.mu.Lock()
					defer w.depot.mu.Unlock()
					h := w.depot.held[w.ns][tcp.Name]
					begin = h.since
					return h.owner == nil
				})
			} else {
				w.depot.mu.Lock()
				begin = w.depot.held[w.ns][tcp.Name].since
				w.depot.mu.Unlock()
			}
			w.depot.sweep(begin.Add(c.age))
			if got := w.depot.Len() == 1; got != c.kept {
				t.Errorf("kept: %v, want %v", got, c.kept)
			}
		})
	}
	t.Run("forgotten", func(t *testing.T) {
		w := newWorld(t)
		_, tcp := w.listen()
		w.must(w.dial().Deposit(w.ns, []Socket{tcp}))
		w.depot.Forget(w.ns)
		if n := w.depot.Len(); n != 0 {
			t.Errorf("%d sockets are kept", n)
		}
	})
	t.Run("superseded", func(t *testing.T) {
		w := newWorld(t)
		_, tcp := w.listen()
		client := w.dial()
		w.must(client.Deposit(w.ns, []Socket{tcp}))
		w.pods.set(true, true)
		w.depot.Superseded(w.ns)
		if n := w.depot.Len(); n != 1 {
			t.Errorf("%d sockets of a proxy that is there, want 1", n)
		}
		w.pods.set(true, false)
		client.Close()
		w.eventually("it has no owner", func() bool {
			w.depot.mu.Lock()
			defer w.depot.mu.Unlock()
			return w.depot.held[w.ns][tcp.Name].owner == nil
		})
		w.depot.Superseded(w.ns)
		if n := w.depot.Len(); n != 1 {
			t.Errorf("%d sockets while no proxy serves the pod, want 1", n)
		}
		w.pods.set(true, true)
		w.depot.Superseded(w.ns)
		if n := w.depot.Len(); n != 0 {
			t.Errorf("%d sockets are kept though another proxy serves the pod", n)
		}
	})
	t.Run("not lent while another proxy serves", func(t *testing.T) {
		w := newWorld(t)
		_, tcp := w.listen()
		client := w.dial()
		w.must(client.Deposit(w.ns, []Socket{tcp}))
		client.Close()
		w.pods.set(true, true)
		w.eventually("nothing is lent", func() bool {
			lent, err := w.dial().Lend(w.ns)
			w.must(err)
			closeSockets(lent.Sockets)
			return len(lent.Sockets) == 0
		})
	})
}

// TestDepositReplaces deposits again: what is not in it any more is closed, and an empty one gives up only one's own.
func TestDepositReplaces(t *testing.T) {
	w := newWorld(t)
	_, a := w.listen()
	_, b := w.listen()
	first, second := w.dial(), w.dial()
	w.must(first.Deposit(w.ns, []Socket{a, b}))
	w.must(first.Deposit(w.ns, []Socket{b}))
	if n := w.depot.Len(); n != 1 {
		t.Errorf("%d sockets, want that of the second deposit alone", n)
	}
	w.must(second.Deposit(w.ns, nil))
	if n := w.depot.Len(); n != 1 {
		t.Errorf("%d sockets after another session has given up its own, want 1", n)
	}
	w.must(first.Deposit(w.ns, nil))
	if n := w.depot.Len(); n != 0 {
		t.Errorf("%d sockets after all were given up", n)
	}
}

// many lends a socket many times over, under one name each.
type many struct {
	n  int
	fd int
}

func (m many) Lend(*Session, NetNS) ([]Socket, bool) {
	var all []Socket
	for range m.n {
		fd, _ := unix.FcntlInt(uintptr(m.fd), unix.F_DUPFD_CLOEXEC, 0)
		_, name, _ := Inspect(fd)
		all = append(all, Socket{Name: name, FD: fd})
	}
	return all, false
}
func (many) Taken(*Session, NetNS)                   {}
func (many) Deposit(*Session, NetNS, []Socket) error { return errors.New("not taken") }
func (many) Ended(*Session)                          {}

// TestManyDescriptors lends more than one packet may carry.
func TestManyDescriptors(t *testing.T) {
	w := newWorld(t)
	_, tcp := w.listen()
	const n = 2*MaxDescriptors + 7
	w.path += ".many"
	w.serve(many{n: n, fd: tcp.FD})
	c := w.dial()
	lent, err := c.Lend(w.ns)
	w.must(err)
	if len(lent.Sockets) != n {
		t.Errorf("%d sockets, want %d", len(lent.Sockets), n)
	}
	closeSockets(lent.Sockets)
	if err := c.Deposit(w.ns, []Socket{tcp}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not taken") {
		t.Errorf("refused deposit: %v", err)
	}
	if err := c.Taken(w.ns); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
}

// TestWrongSockets deposits what is not what it is said to be.
func TestWrongSockets(t *testing.T) {
	w := newWorld(t)
	ln, tcp := w.listen()
	conn, err := net.Dial("tcp", ln.Addr().String())
	w.must(err)
	defer conn.Close()
	f, err := conn.(*net.TCPConn).File()
	w.must(err)
	defer f.Close()
	elsewhere := w.ns
	elsewhere.Ino++
	other := Name{Network: TCP, Addr: netip.AddrPortFrom(tcp.Name.Addr.Addr(), 1)}
	null, err := os.Open("/dev/null")
	w.must(err)
	defer null.Close()
	for _, c := range []struct {
		name string
		ns   NetNS
		s    Socket
		want string
	}{
		{"another namespace", elsewhere, tcp, "not " + elsewhere.String()},
		{"another port", w.ns, Socket{Name: other, FD: tcp.FD}, "said to be"},
		{"a connection", w.ns, Socket{Name: tcp.Name, FD: int(f.Fd())}, "neither"},
		{"a file", w.ns, Socket{Name: tcp.Name, FD: int(null.Fd())}, "inspect"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := w.dial().Deposit(c.ns, []Socket{c.s}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want a refusal with %q", err, c.want)
			}
		})
	}
	if n := w.depot.Len(); n != 0 {
		t.Errorf("%d sockets are kept", n)
	}
}

// raw connects and sends packets as they are.
func (w *world) raw(packets ...string) *net.UnixConn {
	w.t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: w.path, Net: "unixpacket"})
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	for _, p := range packets {
		_, err := c.Write([]byte(p))
		w.must(err)
	}
	return c
}

func (w *world) read(c *net.UnixConn) string {
	w.t.Helper()
	b := make([]byte, maxPacket)
	n, err := c.Read(b)
	if err != nil || n == 0 {
		return "closed"
	}
	return string(b[:n])
}

// TestOtherReleases speaks as releases older and newer do.
func TestOtherReleases(t *testing.T) {
	w := newWorld(t)
	next := fmt.Sprintf(`{"op":"hello","newest":%d,"oldest":%d,"name":"next","colour":"blue"}`, newest+1, newest)
	c := w.raw(next)
	if got := w.read(c); !strings.Contains(got, `"name":"holder"`) || strings.Contains(got, "error") {
		t.Errorf("hello of the next release is answered with %s", got)
	}
	c.Write([]byte(`{"op":"paint","netns":{"dev":1,"ino":2},"colour":"blue"}`))
	if got := w.read(c); !strings.Contains(got, "unknown operation") {
		t.Errorf("an operation of the next release is answered with %s", got)
	}
	c.Write([]byte(`{"op":"lend","netns":{"dev":1,"ino":2}}`))
	if got := w.read(c); got != `{"orphaned":true}` {
		t.Errorf("after that, a lend is answered with %s", got)
	}
	far := w.raw(fmt.Sprintf(`{"op":"hello","newest":%d,"oldest":%d}`, newest+2, newest+1))
	if got := w.read(far); !strings.Contains(got, "no common version") {
		t.Errorf("a release with no common version is answered with %s", got)
	}
	if got := w.read(far); got != "closed" {
		t.Errorf("and then with %s, want the end", got)
	}
	for _, packet := range []string{`{"op":"lend"}`, `]`, ``} {
		if got := w.read(w.raw(packet)); got != "closed" {
			t.Errorf("first packet %q is answered with %s, want the end", packet, got)
		}
	}
}

// TestMuteHolder asks somebody who does not answer.
func TestMuteHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mute.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	start := time.Now()
	c, err := Dial(t.Context(), path, "client", 50*time.Millisecond)
	if err == nil {
		c.Close()
		t.Fatal("there is no error")
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want a time-out", err)
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("it took %v", d)
	}
}

// TestPath wants the socket to be root's alone, and to be replaced in one step.
func TestPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	var lns []*net.UnixListener
	for range 2 {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		lns = append(lns, ln)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %o, want 600", mode)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("folder has %v, %v; want the socket alone", entries, err)
	}
	c, err := net.Dial("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lns[1].SetDeadline(time.Now().Add(patience))
	if a, err := lns[1].Accept(); err != nil {
		t.Errorf("the newer listener: %v", err)
	} else {
		a.Close()
	}
}

// TestStranger is turned away by the credentials of its end of the socket.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: to be another user needs root")
	}
	w := newWorld(t)
	w.must(os.Chmod(filepath.Dir(w.path), 0o755))
	w.must(os.Chmod(filepath.Dir(filepath.Dir(w.path)), 0o755))
	w.must(os.Chmod(w.path, 0o666)) // so that only the credentials are in the way
	err := asNobody(func() error {
		c, err := net.Dial("unixpacket", w.path)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(`{"op":"hello","newest":1,"oldest":1}`))
		if n, err := c.Read(make([]byte, 100)); n > 0 {
			return errors.New("it was answered")
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNamesSort(t *testing.T) {
	names := []Name{
		{UDP, netip.MustParseAddrPort("127.0.0.1:1")}, {TCP, netip.MustParseAddrPort("[::]:2")}, {TCP, netip.MustParseAddrPort("[::]:1")},
	}
	slices.SortFunc(names, Name.compare)
	if got := fmt.Sprint(names); got != "[tcp [::]:1 tcp [::]:2 udp 127.0.0.1:1]" {
		t.Error(got)
	}
}
