// Package lookup finds the addresses of host names that stand for workloads outside the mesh, when the first connection needs
// them. It asks the proxy's own resolvers, as Istio's does, keeps answers as long as they say, within bounds, and lets
// connections that need the same name wait for one query. While resolvers do not answer in time, what they said last is used
// for a while longer, and no connection waits for them. No lock is held while anything is asked.
package lookup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/puzpuzpuz/xsync/v4"
)

// Bounds.
const (
	// timeout bounds one look-up, all attempts together; attempt one question to one resolver. Resolvers are asked in
	// turn, so often.
	timeout = 5 * time.Second
	attempt = 1500 * time.Millisecond
	rounds  = 2
	// An answer is kept as long as its TTL says, but at least minTTL, so that a TTL of zero is not a query for each
	// connection, and at most maxTTL. That a name has no address is kept for at most maxNegative.
	minTTL      = time.Second
	maxTTL      = 10 * time.Minute
	maxNegative = 30 * time.Second
	// maxStale is how much longer an answer is used while no resolver answers, stalePatience how long a new one is waited for
	// before that (RFC 8767, section 5, with shorter times: a connection waits, not a person), and retryAfter when it is
	// asked again after no resolver answered.
	maxStale      = 10 * time.Minute
	stalePatience = 200 * time.Millisecond
	retryAfter    = 5 * time.Second
	// maxNames bounds the names that are remembered (Istio's bound), maxAddrs the addresses of each in each family, and
	// maxFlights the queries that run at the same time.
	maxNames   = 4096
	maxAddrs   = 64
	maxFlights = 256
	// maxAliases bounds how often a name may be an alias of another one, which may be one of it: resolvers end earlier.
	maxAliases = 16
	// maxPayload is the largest answer that is taken by UDP: more is fragmented, and fragments are dropped by many.
	maxPayload = 1232
)

// Errors of Lookup, wrapped; branch with errors.Is.
var (
	// ErrNotFound: the name has no address.
	ErrNotFound = errors.New("no such host")
	// ErrBusy: too many other names are being looked up.
	ErrBusy = errors.New("too many look-ups at the same time")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("look-ups have ended")
)

// Errors of queries.
var (
	errNoServer = errors.New("no resolver is configured")
	errAliases  = fmt.Errorf("the name is an alias of an alias, more than %d times or in a circle", maxAliases)
)

// Config configures a Resolver.
type Config struct {
	// Servers returns the resolvers to ask, in order. It is called for each query that is sent, so that it follows
	// changes. Required.
	Servers func() ([]netip.AddrPort, error)
	// Dial connects to a resolver by "udp" or "tcp"; nil: from the process' own network namespace.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Resolver looks up. Make one with New. It is safe for concurrent use.
type Resolver struct {
	cfg   Config
	names *xsync.Map[string, *answer]

	mu      sync.Mutex // guards the fields below; never held across a query
	flights map[string]*flight
	closed  bool
	running sync.WaitGroup
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc

	now func() time.Time
}

// answer is what is known of a name. It is immutable.
type answer struct {
	addrs []netip.Addr // none: the name has no address
	until time.Time
	// again is when to ask again, without waiting for the answer, since no resolver has answered after it ran out, or none has for
	// one of the families; zero: resolvers answer.
	again time.Time
}

// stale tells whether the answer, which has run out, may be used until there is a new one.
func (a *answer) stale(now time.Time) bool {
	return a != nil && len(a.addrs) > 0 && now.Before(a.until.Add(maxStale))
}

// with is an answer of one family together with what a former one, which has run out, knows of the other: if it knows anything, they
// are used as that is.
func (a *answer) with(old *answer) *answer {
	out := &answer{addrs: slices.Clone(a.addrs), until: old.until, again: a.again}
	for _, addr := range old.addrs {
		if addr.Is4() != a.addrs[0].Is4() {
			out.addrs = append(out.addrs, addr)
		}
	}
	if len(out.addrs) == len(a.addrs) {
		return a
	}
	return out
}

// flight is a query that runs.
type flight struct {
	began  time.Time
	done   chan struct{} // closed when result is set
	result atomic.Pointer[outcome]
}

type outcome struct {
	addrs []netip.Addr
	err   error
}

// New makes a Resolver. Close it.
func New(cfg Config) *Resolver {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	r := &Resolver{cfg: cfg, names: xsync.NewMap[string, *answer](), flights: map[string]*flight{}, now: time.Now}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends all look-ups and returns when they have ended.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	return nil
}

// Lookup returns the addresses of a fully qualified name, both families, at least one. The result must not be changed. It
// asks nobody while a former answer holds. With one that has run out, it waits for a new one for a moment only.
func (r *Resolver) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	host = strings.ToLower(host)
	now := r.now()
	old, _ := r.names.Load(host)
	if old != nil && now.Before(old.until) {
		return old.result(host)
	}
	stale := old.stale(now)
	if stale && now.Before(old.again) {
		return old.addrs, nil
	}
	f, a, err := r.join(host)
	switch {
	case a != nil:
		return a.result(host)
	case stale && errors.Is(err, ErrBusy):
		return old.addrs, nil
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	var late <-chan time.Time // nil: there is nothing else than to wait
	if stale {
		patience := time.Until(f.began.Add(stalePatience))
		if patience <= 0 || !old.again.IsZero() { // resolvers are late, or were the last time
			return old.addrs, nil
		}
		t := time.NewTimer(patience)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-f.done:
		o := f.result.Load()
		return o.addrs, o.err
	case <-late:
		return old.addrs, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("look up %s: %w", host, context.Cause(ctx))
	}
}

// Until returns how long what is known of a name holds, without asking; zero if nothing is.
func (r *Resolver) Until(host string) time.Time {
	a, ok := r.names.Load(strings.ToLower(host))
	switch {
	case !ok:
		return time.Time{}
	case a.again.After(a.until):
		return a.again
	}
	return a.until
}

func (a *answer) result(host string) ([]netip.Addr, error) {
	if len(a.addrs) == 0 {
		return nil, fmt.Errorf("look up %s: %w", host, ErrNotFound)
	}
	return a.addrs, nil
}

// known is the answer to a name that holds, nil if there is none.
func (r *Resolver) known(host string) *answer {
	if a, ok := r.names.Load(host); ok && r.now().Before(a.until) {
		return a
	}
	return nil
}

// join returns the query for a name that runs, or the answer if one has ended meanwhile, or starts one.
func (r *Resolver) join(host string) (*flight, *answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, nil, ErrClosed
	}
	if f := r.flights[host]; f != nil {
		return f, nil, nil
	}
	if a := r.known(host); a != nil {
		return nil, a, nil
	}
	if len(r.flights) >= maxFlights {
		return nil, nil, ErrBusy
	}
	f := &flight{began: time.Now(), done: make(chan struct{})}
	r.flights[host] = f
	r.running.Go(func() {
		addrs, err := r.resolve(host)
		f.result.Store(&outcome{addrs, err})
		r.mu.Lock()
		delete(r.flights, host)
		r.mu.Unlock()
		close(f.done)
	})
	return f, nil, nil
}

// resolve asks, and remembers the answer.
func (r *Resolver) resolve(host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(r.ctx, timeout)
	defer cancel()
	a, err := r.ask(ctx, host)
	old, _ := r.names.Load(host)
	if err == nil {
		if !a.again.IsZero() && old.stale(r.now()) {
			a = a.with(old)
		}
		r.remember(host, a)
		return a.result(host)
	}
	if old.stale(r.now()) {
		r.remember(host, &answer{addrs: old.addrs, until: old.until, again: r.now().Add(retryAfter)})
		return old.addrs, nil
	}
	return nil, fmt.Errorf("look up %s: %w", host, err)
}

// remember keeps an answer, in the place of one that has run out if there are many.
func (r *Resolver) remember(host string, a *answer) {
	if _, known := r.names.Load(host); !known && r.names.Size() >= maxNames {
		now, spare := r.now(), maxNames/8
		r.names.Range(func(name string, old *answer) bool {
			if now.After(old.until) || r.names.Size() >= maxNames {
				r.names.Delete(name)
				spare--
			}
			return spare > 0
		})
	}
	r.names.Store(host, a)
}

// ask asks for both families at once. One answer is enough; without any, that the name is not there beats a failure.
func (r *Resolver) ask(ctx context.Context, host string) (*answer, error) {
	servers, err := r.cfg.Servers()
	if err == nil && len(servers) == 0 {
		err = errNoServer
	}
	if err != nil {
		return nil, err
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	answers, errs := make([]*answer, len(types)), make([]error, len(types))
	var wg sync.WaitGroup
	for i, t := range types {
		wg.Go(func() { answers[i], errs[i] = r.askAny(ctx, servers, host, t) })
	}
	wg.Wait()
	out := &answer{}
	for _, a := range answers {
		if a == nil || len(a.addrs) == 0 && len(out.addrs) > 0 {
			continue
		}
		if len(out.addrs) == 0 || a.until.Before(out.until) {
			out.until = a.until
		}
		out.addrs = append(out.addrs, a.addrs...)
	}
	if err := cmp.Or(errs[0], errs[1]); err != nil {
		if len(out.addrs) == 0 { // half of an answer is not a name without addresses
			return nil, err
		}
		// Nor is it one without addresses of the other family, which a client may need.
		out.again = r.now().Add(retryAfter)
		if out.again.Before(out.until) {
			out.until = out.again
		}
	}
	return out, nil
}

// askAny asks one resolver after the other until one answers.
func (r *Resolver) askAny(ctx context.Context, servers []netip.AddrPort, host string, qtype uint16) (*answer, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(host), qtype)
	q.SetEdns0(maxPayload, false)
	var err error
	for range rounds {
		for _, server := range servers {
			if ctx.Err() != nil {
				return nil, cmp.Or(err, context.Cause(ctx))
			}
			var m *dns.Msg
			if m, err = r.exchange(ctx, server, q); err != nil {
				err = fmt.Errorf("ask resolver %s: %w", server, err)
				continue
			}
			return r.read(m, qtype)
		}
	}
	return nil, err
}

// exchange asks one resolver: by UDP, and by TCP if the answer does not fit; once more without EDNS if it does not understand
// that (RFC 6891, section 7).
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	network := "udp"
	for {
		m, err := r.send(ctx, network, server, q)
		switch {
		case err != nil:
			return nil, err
		case !answers(m, q):
			return nil, errors.New("the answer is to another question")
		case q.IsEdns0() != nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented):
			q = q.Copy()
			q.Extra = nil
		case m.Truncated && network == "udp":
			network = "tcp"
		case m.Truncated:
			return nil, errors.New("truncated answer by TCP")
		case m.Rcode == dns.RcodeSuccess, m.Rcode == dns.RcodeNameError:
			return m, nil
		default:
			return nil, fmt.Errorf("answer is %s", dns.RcodeToString[m.Rcode])
		}
	}
}

// send sends a query, under an ID of its own, and waits for the answer to it.
func (r *Resolver) send(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	q = q.Copy()
	q.Id = dns.Id()
	conn, err := r.cfg.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	client := &dns.Client{Net: network, UDPSize: maxPayload, Timeout: attempt}
	m, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn, UDPSize: maxPayload})
	return m, err
}

// answers tells whether m, which has q's ID, is an answer to its question. A resolver may refuse without repeating it.
func answers(m, q *dns.Msg) bool {
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError
	}
	asked, told := q.Question[0], m.Question[0]
	return m.Response && len(m.Question) == 1 && strings.EqualFold(told.Name, asked.Name) && told.Qtype == asked.Qtype && told.Qclass == asked.Qclass
}

// isHost reports whether an address may be another host's: nobody's DNS leads a connection back into the pod.
func isHost(a netip.Addr) bool { return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() }

// read takes the addresses of the name that was asked for, or that it is an alias of, and how long they hold.
func (r *Resolver) read(m *dns.Msg, qtype uint16) (*answer, error) {
	ttl := maxTTL
	lower := func(seconds uint32) { ttl = min(ttl, time.Duration(seconds)*time.Second) }
	name := m.Question[0].Name
	for hops := 0; ; hops++ { // aliases come in any order
		i := slices.IndexFunc(m.Answer, func(rr dns.RR) bool {
			_, ok := rr.(*dns.CNAME)
			return ok && strings.EqualFold(rr.Header().Name, name)
		})
		if i < 0 {
			break
		}
		if hops == maxAliases {
			return nil, errAliases
		}
		lower(m.Answer[i].Header().Ttl)
		name = m.Answer[i].(*dns.CNAME).Target
	}
	out := &answer{}
	for _, rr := range m.Answer {
		if rr.Header().Rrtype != qtype || !strings.EqualFold(rr.Header().Name, name) {
			continue
		}
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		addr, ok := netip.AddrFromSlice(ip)
		if addr = addr.Unmap(); ok && isHost(addr) && len(out.addrs) < maxAddrs && !slices.Contains(out.addrs, addr) {
			lower(rr.Header().Ttl)
			out.addrs = append(out.addrs, addr)
		}
	}
	if len(out.addrs) == 0 {
		ttl = min(ttl, maxNegative)
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				lower(min(soa.Hdr.Ttl, soa.Minttl)) // RFC 2308, section 5
			}
		}
	}
	out.until = r.now().Add(max(ttl, minTTL))
	return out, nil
}
