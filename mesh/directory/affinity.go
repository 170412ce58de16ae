package directory

import (
	"hash/fnv"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/puzpuzpuz/xsync/v4"
)

// maxBound bounds the clients that one service remembers. A node proxy's clients are the node's pods; what is more are
// pods that are gone, whose time is not over yet.
const maxBound = 4096

// affinity is which endpoint each client of a service has.
type affinity struct {
	clients *xsync.Map[netip.Addr, *binding]
}

// binding is one client's endpoint. It is replaced when that changes.
type binding struct {
	uid  string
	used atomic.Int64 // when it was last picked, as Directory.now
}

// bound returns the endpoint that the client had within the service's time, if it may still be picked; nil otherwise.
func (p *picker) bound(d *Directory, set *endpointSet, key viewKey) *Workload {
	table, client := set.affinity.Load(), p.client()
	if table == nil {
		return nil
	}
	b, ok := table.clients.Load(client)
	if !ok {
		return nil
	}
	now := d.now()
	if now-time.Duration(b.used.Load()) > p.request.Service.Affinity {
		return nil
	}
	w := d.Workload(b.uid)
	if w == nil || p.tried(w) || w.membership(p.request.Service.ServiceKey) == nil || set.isEjected(w.UID) {
		return nil
	}
	if _, ok := rankOf(p.request.Service, key, w); !ok {
		return nil
	}
	b.used.Store(int64(now))
	return w
}

// bind chooses an endpoint for a client that has none: the one of the best rank to which a hash of both gives the most
// weight (rendezvous hashing). So a proxy that has forgotten the client, or another one that the client comes to,
// chooses the same, and one that is new or gone moves no more clients than its share.
func (p *picker) bind(d *Directory, set *endpointSet, ranks []rank) *Workload {
	client := p.client()
	for i := range ranks {
		w := p.rendezvous(&ranks[i], client)
		if w == nil {
			continue
		}
		b := &binding{uid: w.UID}
		b.used.Store(int64(d.now()))
		set.remember(client, b, p.request.Service.Affinity, d.now())
		return w
	}
	return nil
}

// client is who is bound; not valid if that is not known.
func (p *picker) client() netip.Addr {
	if p.request.Source == nil || len(p.request.Source.Addrs) == 0 {
		return netip.Addr{}
	}
	return p.request.Source.Addrs[0]
}

func (p *picker) rendezvous(r *rank, client netip.Addr) *Workload {
	var best *Workload
	var most float64
	seed := client.As16()
	for _, c := range r.classes {
		for i := range c.list.n {
			w := c.list.at(i)
			if p.tried(w) {
				continue
			}
			h := fnv.New64a()
			h.Write(seed[:])
			h.Write([]byte(w.UID))
			if score := rendezvousScore(h.Sum64(), w.Capacity); best == nil || score > most {
				best, most = w, score
			}
		}
	}
	return best
}

// rendezvousScore makes a hash a draw between 0 and 1, and weighs it: of several, each is the highest with the share of its
// weight.
func rendezvousScore(hash uint64, weight uint32) float64 {
	// FNV mixes the last bytes, in which uids differ, badly into the high bits (this is the end of MurmurHash3).
	hash ^= hash >> 33
	hash *= 0xff51afd7ed558ccd
	hash ^= hash >> 33
	hash *= 0xc4ceb9fe1a85ec53
	hash ^= hash >> 33
	draw := (float64(hash>>11) + 0.5) / (1 << 53)
	return -float64(weight) / math.Log(draw)
}

// remember binds a client. If there are too many, those whose time is over go, and if there still are, any.
func (s *endpointSet) remember(client netip.Addr, b *binding, lifetime, now time.Duration) {
	table := s.affinity.Load()
	for table == nil {
		s.affinity.CompareAndSwap(nil, &affinity{clients: xsync.NewMap[netip.Addr, *binding]()})
		table = s.affinity.Load()
	}
	if table.clients.Size() >= maxBound {
		for client, b := range table.clients.All() {
			if now-time.Duration(b.used.Load()) > lifetime || table.clients.Size() >= maxBound {
				table.clients.Delete(client)
			}
		}
	}
	table.clients.Store(client, b)
}

// isEjected is for those who do not hold mu.
func (s *endpointSet) isEjected(uid string) bool {
	if s.outliers.out.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outliers.isOut(uid)
}
