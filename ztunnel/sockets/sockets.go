// Package sockets keeps track of the sockets that the proxy has in pods' namespaces. It gets them from the proxy that was
// there before, or from the node agent's depot if that one died, lends them to the proxy that comes after, and has the
// depot keep them, so that no connection that waits in a queue is lost over an upgrade or a crash.
//
// Rules of the room: nothing here is ever in the way of serving a pod: what does not answer in time is left alone, and the
// pod's sockets are made anew. At any time one process serves a socket: who lends stops when the other has taken over, and
// goes on if that one ends. It knows sockets, not what they are for.
package sockets

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/mesh/handover"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// Timing.
const (
	// depotFirst and depotMax bound the pauses between attempts to reach the depot.
	depotFirst = 100 * time.Millisecond
	depotMax   = 5 * time.Second
	// depotRenew is how often everything is deposited again, in case the depot gave up what it did not know yet.
	depotRenew = time.Minute
	// watchInterval is how often it is seen whether the depot is there.
	watchInterval = 250 * time.Millisecond
)

// Config configures a Keeper.
type Config struct {
	// Path is the socket for the proxy that comes after, and that of the proxy before. Empty: nothing is handed over.
	Path string
	// Depot is the agent's socket. Empty: nothing is deposited.
	Depot string
	// Name introduces this process, for logs.
	Name string
	// Timeout bounds one exchange with another process. Zero means handover.DefaultTimeout.
	Timeout time.Duration
	// Logger takes who takes over from whom. Required.
	Logger *slog.Logger
	// Registerer takes ambit_handover_sockets_total; nil for none.
	Registerer prometheus.Registerer
}

// Socket is a socket that serves a pod. Its owner closes it, after Share.Remove or Share.Close.
type Socket interface {
	SyscallConn() (syscall.RawConn, error)
	// Pause has the owner leave what is in the socket's queue, since another process serves it; Resume undoes it. They return
	// at once.
	Pause()
	Resume()
}

// Keeper is made with New. Its methods may be called concurrently.
type Keeper struct {
	cfg      Config
	sources  *prometheus.CounterVec
	previous *handover.Client // of the proxy before; nil if there is none
	changed  chan struct{}    // wakes the depot's loop; capacity 1
	again    chan struct{}    // a proxy that came after is gone, perhaps with the path; capacity 1

	mu     sync.Mutex // guards what follows; never held while anything waits
	pods   map[netns.ID]*Share
	taken  map[*handover.Session]map[netns.ID]bool
	depot  *handover.Client // nil while there is none
	todo   map[netns.ID]bool
	leaves bool
}

// New connects to the proxy that was there before and to the depot, if they answer. The caller runs the Keeper.
func New(cfg Config) *Keeper {
	k := &Keeper{
		cfg: cfg, changed: make(chan struct{}, 1), again: make(chan struct{}, 1),
		sources: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_handover_sockets_total",
			Help: "Sockets in pods, by where they came from: the proxy before, the agent's depot, or made anew."}, []string{"source"}),
		pods: map[netns.ID]*Share{}, taken: map[*handover.Session]map[netns.ID]bool{}, todo: map[netns.ID]bool{},
	}
	for _, source := range []string{sourceProxy, sourceDepot, sourceNew} {
		k.sources.WithLabelValues(source)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(k.sources)
	}
	if cfg.Depot != "" {
		k.connectDepot(context.Background())
	}
	if cfg.Path == "" {
		return k
	}
	var err error
	k.previous, err = handover.Dial(context.Background(), cfg.Path, cfg.Name, cfg.Timeout)
	switch {
	case err == nil:
		cfg.Logger.Info("taking over from the proxy that is there", "proxy", k.previous.Peer())
	case absent(err):
		cfg.Logger.Debug("no proxy to take over from", "error", err)
	default:
		cfg.Logger.Warn("cannot take over from the proxy that is there; listening beside it", "error", err)
	}
	return k
}

// Where sockets came from.
const (
	sourceProxy = "proxy"
	sourceDepot = "depot"
	sourceNew   = "new"
)

// Run takes the place of the proxy before for those that come after, serves these, and deposits, until the context ends.
func (k *Keeper) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if k.cfg.Depot != "" {
		parts.Go(func() { k.keepDeposited(ctx) })
	}
	defer k.Leave()
	for ctx.Err() == nil {
		if err := k.serve(ctx); err != nil {
			return err
		}
	}
	return nil
}

// serve serves those who come after, until the context ends or the path is to be taken again.
func (k *Keeper) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var again sync.WaitGroup
	defer again.Wait()
	again.Go(func() {
		defer cancel()
		for {
			select {
			case <-k.again:
				if k.nobodyListens(ctx) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if k.cfg.Path != "" {
		ln, err := handover.Listen(k.cfg.Path)
		if err == nil {
			s := handover.Server{Name: k.cfg.Name, Holder: holder{k}, Timeout: k.cfg.Timeout, Logger: k.cfg.Logger}
			return s.Serve(ctx, ln)
		}
		// A folder that is read-only, perhaps. The next proxy will listen beside this one.
		k.cfg.Logger.Warn("sockets cannot be handed over to the next proxy", "error", err)
	}
	<-ctx.Done()
	return nil
}

// nobodyListens tells whether the path is that of a proxy that is gone. A process that dies closes its descriptors one after
// another, so it looks a few times.
func (k *Keeper) nobodyListens(ctx context.Context) bool {
	if k.cfg.Path == "" {
		return false
	}
	for range 3 {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unixpacket", k.cfg.Path)
		if absent(err) {
			return true
		}
		if err == nil {
			c.Close()
		}
		select {
		case <-time.After(watchInterval):
		case <-ctx.Done():
			return false
		}
	}
	return false
}

// absent tells whether an error says that no process listens on a path.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Leave says that this process is about to end: who was there before, and is yet, serves again what was taken from it, and
// the depot holds what it has for the next one. Sockets stay with their owners.
func (k *Keeper) Leave() {
	k.mu.Lock()
	k.leaves = true
	depot := k.depot
	k.depot = nil
	k.mu.Unlock()
	if depot != nil {
		depot.Close()
	}
	if k.previous != nil {
		k.previous.Close()
	}
}

// Close is Leave, for a Keeper that was never run.
func (k *Keeper) Close() error {
	k.Leave()
	return nil
}

// Superseded tells whether another proxy has taken over something.
func (k *Keeper) Superseded() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.taken) > 0
}

// Claim is what a pod's new proxy may take over. Settle or Abandon ends it.
type Claim struct {
	keeper *Keeper
	id     netns.ID
	// Served tells whether another process serves these sockets at present, and goes on if the claim is abandoned.
	Served bool

	from    *handover.Client // that is to be told of the taking over
	source  string
	sockets []handover.Socket
}

// Claim asks for the sockets of a pod's namespace, of the proxy before and then of the depot. It returns within two
// time-outs, and is empty in the usual case that there is nothing to take over.
func (k *Keeper) Claim(id netns.ID) *Claim {
	c := &Claim{keeper: k, id: id}
	ns := handover.NetNS(id)
	if k.previous != nil {
		lent, err := k.previous.Lend(ns)
		k.warn(err, "the proxy before")
		if len(lent.Sockets) > 0 {
			c.from, c.sockets, c.Served, c.source = k.previous, lent.Sockets, true, sourceProxy
			return c
		}
	}
	k.mu.Lock()
	depot := k.depot
	k.mu.Unlock()
	if depot != nil {
		lent, err := depot.Lend(ns)
		k.warn(err, "the depot")
		if len(lent.Sockets) > 0 {
			c.from, c.sockets, c.Served, c.source = depot, lent.Sockets, !lent.Orphaned, sourceDepot
		}
	}
	return c
}

func (k *Keeper) warn(err error, who string) {
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPIPE) {
		k.cfg.Logger.Warn("cannot take sockets over; making them anew", "from", who, "error", err)
	}
}

// Empty tells whether there is nothing to take over. A nil claim is empty.
func (c *Claim) Empty() bool { return c == nil || len(c.sockets) == 0 }

// TCP returns the listener of a port that is to be taken over, nil if there is none. It is the caller's to close.
// Its connections have Go's default keepalive.
func (c *Claim) TCP(port uint16) (*net.TCPListener, error) {
	if c == nil {
		return nil, nil
	}
	s, ok := c.take(func(n handover.Name) bool { return n.Network == handover.TCP && n.Addr.Port() == port })
	if !ok {
		c.keeper.sources.WithLabelValues(sourceNew).Inc()
		return nil, nil
	}
	return s.Listener()
}

// TCPAt is TCP for one address of the namespace, UDPAt for a UDP socket there.
func (c *Claim) TCPAt(addr netip.AddrPort) (*net.TCPListener, error) {
	s, ok := c.take(func(n handover.Name) bool { return n == handover.Name{Network: handover.TCP, Addr: addr} })
	if !ok {
		c.keeper.sources.WithLabelValues(sourceNew).Inc()
		return nil, nil
	}
	return s.Listener()
}

// UDPAt returns the UDP socket that is bound to an address and is to be taken over, nil if there is none. It is the
// caller's to close.
func (c *Claim) UDPAt(addr netip.AddrPort) (*net.UDPConn, error) {
	s, ok := c.take(func(n handover.Name) bool { return n == handover.Name{Network: handover.UDP, Addr: addr} })
	if !ok {
		c.keeper.sources.WithLabelValues(sourceNew).Inc()
		return nil, nil
	}
	return s.PacketConn()
}

func (c *Claim) take(match func(handover.Name) bool) (handover.Socket, bool) {
	for i, s := range c.sockets {
		if match(s.Name) {
			c.sockets = append(c.sockets[:i:i], c.sockets[i+1:]...)
			c.keeper.sources.WithLabelValues(c.source).Inc()
			return s, true
		}
	}
	return handover.Socket{}, false
}

// Abandon leaves the sockets to who serves them.
func (c *Claim) Abandon() {
	for _, s := range c.sockets {
		s.Close()
	}
	c.sockets = nil
}

// Settle says that the pod is served, by these sockets: whoever served it before stops, what was not taken is closed, and
// the sockets are lent to who comes after and deposited.
func (c *Claim) Settle(sockets ...Socket) *Share {
	c.Abandon()
	k := c.keeper
	if c.from != nil {
		if err := c.from.Taken(handover.NetNS(c.id)); err != nil {
			// Then it has ended, or both accept from the same queues for a while, which loses nothing.
			k.warn(err, "a proxy that does not answer any more")
		}
	}
	s := &Share{keeper: k, id: c.id, sockets: map[Socket]bool{}}
	for _, socket := range sockets {
		s.sockets[socket] = true
	}
	k.mu.Lock()
	k.pods[c.id] = s
	k.todoLocked(c.id)
	k.mu.Unlock()
	return s
}

// Share is the sockets of one pod that are lent and deposited. A nil Share shares nothing.
type Share struct {
	keeper *Keeper
	id     netns.ID

	// Guarded by the keeper's mu.
	sockets map[Socket]bool
	paused  bool
	private bool // lent to nobody and not deposited
}

// Remove stops sharing one socket, which is about to end for good: the depot closes it, too.
func (s *Share) Remove(socket Socket) {
	if s == nil {
		return
	}
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	delete(s.sockets, socket)
	if s.keeper.pods[s.id] == s {
		s.keeper.todoLocked(s.id)
	}
}

// Add shares one more.
func (s *Share) Add(socket Socket) {
	if s == nil {
		return
	}
	s.keeper.mu.Lock()
	s.sockets[socket] = true
	paused := s.paused
	s.keeper.todoLocked(s.id)
	s.keeper.mu.Unlock()
	if paused {
		socket.Pause()
	}
}

// Private stops or begins again to share everything; the sockets are served all the same.
func (s *Share) Private(yes bool) {
	if s == nil {
		return
	}
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	s.private = yes
	s.keeper.todoLocked(s.id)
}

// Close stops sharing. If keep is true the depot keeps what it has, for the next process; if not, it gives it up.
func (s *Share) Close(keep bool) {
	if s == nil {
		return
	}
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pods[s.id] != s {
		return
	}
	delete(k.pods, s.id)
	if keep {
		delete(k.todo, s.id)
	} else {
		k.todoLocked(s.id)
	}
}

// todoLocked has the depot's loop look at a namespace.
func (k *Keeper) todoLocked(id netns.ID) {
	k.todo[id] = true
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// duplicates returns duplicates of what is shared of a namespace, for the caller to close.
func (k *Keeper) duplicates(id netns.ID) []handover.Socket {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.pods[id]
	if s == nil || s.private || k.leaves {
		return nil
	}
	var all []handover.Socket
	for socket := range s.sockets {
		raw, err := socket.SyscallConn()
		if err != nil {
			continue // it is closed already
		}
		fd := -1
		cerr := raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) })
		if cerr != nil {
			continue
		}
		if err != nil {
			k.cfg.Logger.Warn("cannot share a socket", "error", err)
			continue
		}
		_, name, err := handover.Inspect(fd)
		if err != nil {
			unix.Close(fd) // it listens no longer
			continue
		}
		all = append(all, handover.Socket{Name: name, FD: fd})
	}
	return all
}
