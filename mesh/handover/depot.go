package handover

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Timing of a Depot.
const (
	// holdLimit is how long sockets are kept that nobody serves. It is longer than kubelet's longest pause between restarts of
	// a container (5 min).
	holdLimit = 6 * time.Minute
	// sweepInterval is how often a depot looks for what it need not keep.
	sweepInterval = 10 * time.Second
)

// maxHeld bounds the sockets of one namespace, in case a proxy goes wrong.
const maxHeld = 64

// Pods tells a Depot about the pods of the node. Its methods must not block.
type Pods interface {
	// Known tells whether a proxy is to serve the namespace's pod.
	Known(NetNS) bool
	// Served tells whether a proxy that is connected serves it.
	Served(NetNS) bool
}

// DepotConfig configures a Depot.
type DepotConfig struct {
	// Pods tells which sockets need not be kept. Required.
	Pods Pods
	// Logger takes what is given up. Required.
	Logger *slog.Logger
	// Registerer takes the gauge ambit_handover_depot_sockets; nil for none.
	Registerer prometheus.Registerer
}

// Depot keeps sockets for a process that may die at any moment, so that connections that come meanwhile wait for the next
// one. It is a Holder. It neither accepts nor reads, and never keeps what no pod needs: sockets go when their pod is
// forgotten or unknown, when another proxy serves the pod with sockets of its own, and when nobody has come for them for
// six minutes.
type Depot struct {
	cfg DepotConfig

	mu   sync.Mutex // guards what follows
	held map[NetNS]map[Name]*held
}

// held is one socket.
type held struct {
	fd    int
	owner *Session  // nil once it is gone
	since time.Time // when the owner, or the lack of one, began
}

// NewDepot makes an empty Depot. Run it; Close it after that.
func NewDepot(cfg DepotConfig) *Depot {
	d := &Depot{cfg: cfg, held: map[NetNS]map[Name]*held{}}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_handover_depot_sockets",
			Help: "Sockets that are kept for the node proxy, so that none is lost when it dies."},
			func() float64 { return float64(d.Len()) }))
	}
	return d
}

// Run gives up what need not be kept any more, until the context ends.
func (d *Depot) Run(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			d.sweep(now)
		case <-ctx.Done():
			return
		}
	}
}

// Close gives up everything.
func (d *Depot) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ns := range d.held {
		d.forgetLocked(ns)
	}
}

// Len is how many sockets there are.
func (d *Depot) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, sockets := range d.held {
		n += len(sockets)
	}
	return n
}

// Forget gives up the sockets of a namespace whose pod is not to be served any more.
func (d *Depot) Forget(ns NetNS) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetLocked(ns)
}

func (d *Depot) forgetLocked(ns NetNS) {
	for _, h := range d.held[ns] {
		unix.Close(h.fd)
	}
	delete(d.held, ns)
}

// sweep gives up what need not be kept. A proxy deposits before it says that it serves the pod, and the agent knows a pod
// before any proxy does; so an interval's delay is for what both are about to correct.
func (d *Depot) sweep(now time.Time) {
	d.mu.Lock()
	all := slices.Collect(maps.Keys(d.held))
	d.mu.Unlock()
	for _, ns := range all {
		known, served := d.cfg.Pods.Known(ns), d.cfg.Pods.Served(ns)
		d.giveUp(ns, func(h *held) string {
			age := now.Sub(h.since)
			switch {
			case age < sweepInterval:
			case !known:
				return "no proxy is to serve its pod"
			case h.owner == nil && served:
				return "another proxy serves its pod with sockets of its own"
			case h.owner == nil && age >= holdLimit:
				return fmt.Sprintf("nobody has come for it in %v", holdLimit)
			}
			return ""
		})
	}
}

// Superseded gives up the sockets of a namespace that have no owner, if a proxy serves its pod: that has others, and what comes
// to these waits in vain.
func (d *Depot) Superseded(ns NetNS) {
	if !d.cfg.Pods.Served(ns) {
		return
	}
	d.giveUp(ns, func(h *held) string {
		if h.owner != nil {
			return ""
		}
		return "another proxy serves its pod with sockets of its own"
	})
}

// giveUp closes the sockets of a namespace for which there is a reason to.
func (d *Depot) giveUp(ns NetNS, reason func(*held) string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, h := range d.held[ns] {
		if why := reason(h); why != "" {
			d.cfg.Logger.Info("socket is kept no longer", "netns", ns, "socket", name, "reason", why)
			unix.Close(h.fd)
			delete(d.held[ns], name)
		}
	}
	if len(d.held[ns]) == 0 {
		delete(d.held, ns)
	}
}

// Lend implements Holder. Sockets without an owner, of a pod that a proxy serves, are not lent: that proxy has its own, which
// the kernel prefers or not as it likes.
func (d *Depot) Lend(_ *Session, ns NetNS) (sockets []Socket, orphaned bool) {
	served := d.cfg.Pods.Served(ns)
	d.mu.Lock()
	defer d.mu.Unlock()
	orphaned = true
	for name, h := range d.held[ns] {
		if h.owner == nil && served {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			d.cfg.Logger.Warn("lend socket", "netns", ns, "socket", name, "error", err)
			continue
		}
		sockets = append(sockets, Socket{Name: name, FD: fd})
		orphaned = orphaned && h.owner == nil
	}
	slices.SortFunc(sockets, func(a, b Socket) int { return a.Name.compare(b.Name) })
	return sockets, orphaned
}

// Taken implements Holder.
func (d *Depot) Taken(s *Session, ns NetNS) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.held[ns] {
		h.owner, h.since = s, time.Now()
	}
}

// Deposit implements Holder.
func (d *Depot) Deposit(s *Session, ns NetNS, sockets []Socket) error {
	if len(sockets) > maxHeld {
		return fmt.Errorf("%d sockets of one network namespace are more than %d", len(sockets), maxHeld)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, h := range d.held[ns] {
		if len(sockets) > 0 || h.owner == s {
			unix.Close(h.fd)
			delete(d.held[ns], name)
		}
	}
	for _, k := range sockets {
		if d.held[ns] == nil {
			d.held[ns] = map[Name]*held{}
		}
		if h := d.held[ns][k.Name]; h != nil {
			unix.Close(h.fd) // named twice
		}
		d.held[ns][k.Name] = &held{fd: k.FD, owner: s, since: time.Now()}
	}
	if len(d.held[ns]) == 0 {
		delete(d.held, ns)
	}
	return nil
}

// Ended implements Holder: what the session has deposited waits for the next one.
func (d *Depot) Ended(s *Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sockets := range d.held {
		for _, h := range sockets {
			if h.owner == s {
				h.owner, h.since = nil, time.Now()
			}
		}
	}
}
