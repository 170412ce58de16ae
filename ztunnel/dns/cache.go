package dns

import (
	"container/list"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxCached bounds the answers that are kept for one pod, and maxCachedSize the bytes of one of them.
	maxCached     = 512
	maxCachedSize = 4096
	// maxTTL bounds how long an answer is kept, in seconds; maxNegativeTTL one that says that there is nothing, so that a
	// name that comes into being is soon found.
	maxTTL         = 300
	maxNegativeTTL = 5
)

// cache keeps answers of upstreams for one pod. The zero value is empty and ready; it may be used concurrently.
type cache struct {
	mu      sync.Mutex // guards the fields below
	entries map[cacheKey]*list.Element
	order   list.List // of *cached, the one that was used last in front
}

// cacheKey is what of a query an answer depends on.
type cacheKey struct {
	server           netip.AddrPort
	name             string // lower case
	qtype, qclass    uint16
	checkingDisabled bool
	dnssec           bool
}

type cached struct {
	key     cacheKey
	message *dns.Msg // never changed
	at      time.Time
	ttl     uint32
}

// keyOf returns the key of a query, and whether answers to it may be kept.
func keyOf(q *dns.Msg, server netip.AddrPort) (cacheKey, bool) {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || !q.RecursionDesired {
		return cacheKey{}, false
	}
	k := cacheKey{
		server: server, name: strings.ToLower(q.Question[0].Name), qtype: q.Question[0].Qtype, qclass: q.Question[0].Qclass,
		checkingDisabled: q.CheckingDisabled,
	}
	if opt := q.IsEdns0(); opt != nil {
		k.dnssec = opt.Do()
		if len(opt.Option) > 0 {
			return k, false // such as a client subnet, on which the answer may depend
		}
	}
	return k, true
}

// get returns an answer to a query, for the caller to change, or nil.
func (c *cache) get(k cacheKey, now time.Time) *dns.Msg {
	c.mu.Lock()
	element := c.entries[k]
	if element == nil {
		c.mu.Unlock()
		return nil
	}
	e := element.Value.(*cached)
	age := now.Sub(e.at)
	if age >= time.Duration(e.ttl)*time.Second {
		c.removeLocked(element)
		c.mu.Unlock()
		return nil
	}
	c.order.MoveToFront(element)
	c.mu.Unlock()
	m := e.message.Copy()
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				h := rr.Header()
				h.Ttl -= min(h.Ttl, uint32(age/time.Second))
			}
		}
	}
	return m
}

// put keeps an answer, which must not be changed any more, if it may be kept.
func (c *cache) put(k cacheKey, m *dns.Msg, now time.Time) {
	ttl, ok := lifetime(m)
	if !ok || ttl == 0 || m.Len() > maxCachedSize {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[cacheKey]*list.Element{}
	}
	if old := c.entries[k]; old != nil {
		c.removeLocked(old)
	}
	c.entries[k] = c.order.PushFront(&cached{key: k, message: m, at: now, ttl: ttl})
	for c.order.Len() > maxCached {
		c.removeLocked(c.order.Back())
	}
}

func (c *cache) removeLocked(e *list.Element) {
	delete(c.entries, e.Value.(*cached).key)
	c.order.Remove(e)
}

// lifetime says how long an answer may be kept, in seconds (RFC 2308 for those that say that there is nothing).
func lifetime(m *dns.Msg) (uint32, bool) {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	if m.Rcode == dns.RcodeNameError || !answers(m) {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				return min(soa.Hdr.Ttl, soa.Minttl, maxNegativeTTL), true
			}
		}
		return 0, false
	}
	ttl := uint32(maxTTL)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				ttl = min(ttl, rr.Header().Ttl)
			}
		}
	}
	return ttl, true
}

// answers tells whether there is a record of the type that was asked for, and not only the way to where there is none.
func answers(m *dns.Msg) bool {
	if len(m.Question) != 1 {
		return false
	}
	for _, rr := range m.Answer {
		if t := m.Question[0].Qtype; rr.Header().Rrtype == t || t == dns.TypeANY {
			return true
		}
	}
	return false
}
