package proxy

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// errNoPorts is why a connection was refused for which the pod's settings leave no source port. The application then does
// not see another address than the client's: it sees nothing.
var errNoPorts = errors.New("no source port: the pod's net.ipv4.ip_local_port_range leaves no port for connections under " +
	"the client's address; narrow it, or set net.ipv4.ip_local_reserved_ports to a range that the pod does without")

const (
	// portsAge is how long the namespace's settings are taken to be as they were read.
	portsAge = 10 * time.Second
	// portsWanted is how many ports of the usual range must be usable, lest all others are used too.
	portsWanted = 4096
	// portsLowest is the first port that an unprivileged process may bind.
	portsLowest = 1024
	// portRun is how many ports in a row may be in use before it goes on elsewhere, portJumps how many such jumps lead once
	// around: connections that were opened together, and live long, have ports together.
	portRun   = 8
	portJumps = 16
	// portCounters is how many destinations count separately (RFC 6056 section 3.3.4). More destinations share them.
	portCounters = 1024
)

// ownPorts are in use by the proxy itself in every pod.
var ownPorts = netns.PortRange{First: 15000, Last: 15090}

// sourcePorts hands out the source ports from which the application is dialled under the client's address.
//
// They lie where the kernel never takes a port by itself. If the kernel chose (port 0), it could choose one with which the
// client holds a plain connection to the same port of the application: connection tracking in the pod would take both for
// one, and the client's would die.
//
// A port is used again for the same client and application as late as possible, since its predecessor may be in TIME_WAIT:
// each such pair counts upwards, from a start of its own that nobody can guess.
type sourcePorts struct {
	ns   *netns.Namespace
	seed maphash.Seed

	mu   sync.Mutex // guards the fields below
	read time.Time
	set  portSet

	counters [portCounters]atomic.Uint32

	// track looks for live connections of a client that uses ports outside the kernel's usual range; nil if the kernel cannot
	// be asked.
	track *netns.Conntrack
}

func newSourcePorts(ns *netns.Namespace, logger *slog.Logger) *sourcePorts {
	s := &sourcePorts{ns: ns, seed: maphash.MakeSeed()}
	var err error
	if s.track, err = ns.OpenConntrack(); err != nil {
		logger.Warn("cannot look into the pod's connection tracking; a client with an unusual ip_local_port_range may be hit", "error", err)
	}
	return s
}

func (s *sourcePorts) close() {
	if s.track != nil {
		s.track.Close()
	}
}

// taken tells whether connection tracking knows a live connection from the client's port to the application: one that the
// client opened itself, since the kernel tells of ours by an error of bind or connect. If it cannot be asked, the port
// counts as free: it is outside the range that clients use by default.
func (s *sourcePorts) taken(src, app netip.AddrPort) bool {
	if s.track == nil {
		return false
	}
	live, err := s.track.Live(src, app)
	return err == nil && live
}

// usable returns the ports, which are read anew now and then: a privileged pod may change its settings.
func (s *sourcePorts) usable() (portSet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) < portsAge {
		return s.set, nil
	}
	local, err := s.ns.LocalPorts()
	if err != nil {
		return nil, err
	}
	s.set, s.read = portsFor(local), time.Now()
	return s.set, nil
}

// next returns the port to try next for a client and an application, after failed others were in use.
func (s *sourcePorts) next(client netip.Addr, app netip.AddrPort, failed int) (uint16, error) {
	set, err := s.usable()
	if err != nil {
		return 0, err
	}
	n := set.len()
	if n == 0 {
		return 0, errNoPorts
	}
	hash := maphash.Comparable(s.seed, struct {
		client netip.Addr
		app    netip.AddrPort
	}{client, app})
	step := uint32(1)
	if failed > 0 && failed%portRun == 0 {
		step = uint32(max(1, n/portJumps))
	}
	count := s.counters[hash%portCounters].Add(step)
	return set.at(uint32((hash>>16 + uint64(count)) % uint64(n))), nil
}

// portSet is a set of ports, as ranges in order that do not overlap.
type portSet []netns.PortRange

func (s portSet) len() int {
	n := 0
	for _, r := range s {
		n += int(r.Last) - int(r.First) + 1
	}
	return n
}

// at returns the port number i, from 0.
func (s portSet) at(i uint32) uint16 {
	for _, r := range s {
		size := uint32(r.Last) - uint32(r.First) + 1
		if i < size {
			return r.First + uint16(i)
		}
		i -= size
	}
	panic(fmt.Sprintf("proxy: port %d beyond the set", i))
}

// portsFor returns the ports that the kernel does not hand out: those of the usual range, and all others if those are few.
func portsFor(l netns.LocalPorts) portSet {
	var free [1 << 16]bool
	for p := portsLowest; p < len(free); p++ {
		free[p] = true
	}
	mark := func(r netns.PortRange, value bool) {
		for p := int(r.First); p <= int(r.Last); p++ {
			free[p] = value && p >= portsLowest
		}
	}
	mark(l.Ephemeral, false)
	for _, r := range l.Reserved {
		mark(r, true)
	}
	mark(ownPorts, false)
	usual := ranges(&free, api.InboundPortFirst, api.InboundPortLast)
	if usual.len() >= portsWanted {
		return usual
	}
	return ranges(&free, portsLowest, len(free)-1)
}

// ranges gathers the free ports from first to last.
func ranges(free *[1 << 16]bool, first, last int) portSet {
	var set portSet
	for p := first; p <= last; p++ {
		if !free[p] {
			continue
		}
		start := p
		for p < last && free[p+1] {
			p++
		}
		set = append(set, netns.PortRange{First: uint16(start), Last: uint16(p)})
	}
	return set
}
