package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/mesh/share"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

const (
	// maxUDP is the largest message that is sent by UDP: what gets through any network in one piece (the DNS flag day 2020).
	maxUDP = 1232
	// podForwards and nodeForwards bound the queries that wait for resolvers, of one pod and of all.
	podForwards  = 256
	nodeForwards = 2048
	// maxConns bounds the TCP connections of one pod, connIdle how long one may be idle, connQueries the queries on one.
	maxConns    = 64
	connIdle    = 10 * time.Second
	connQueries = 1000
	// quietTime is how long no query has come when the sockets may be closed: whoever shares the port, or the pod's rules,
	// have taken over then.
	quietTime = time.Second
	quietLook = 50 * time.Millisecond
)

// Node is what the servers of all pods share. Make it with NewNode.
type Node struct {
	NodeConfig
	forwards chan struct{} // a token each
}

// NodeConfig is what a Node is made of. Everything is required.
type NodeConfig struct {
	Directory Directory
	// Network and ClusterID are the node's, ClusterDomain the cluster's DNS domain.
	Network, ClusterID, ClusterDomain string
	// Fallback are the resolvers for a query of which neither its destination nor the pod's own resolvers are known.
	Fallback []netip.AddrPort
	Metrics  *telemetry.DNS
	Logger   *slog.Logger
}

// NewNode makes a Node.
func NewNode(c NodeConfig) *Node {
	return &Node{NodeConfig: c, forwards: make(chan struct{}, nodeForwards)}
}

// Config is what a pod's Server is made of.
type Config struct {
	// Namespace is the pod's.
	Namespace string
	// Settings are the pod's; zero: what a pod has that uses the cluster's DNS.
	Settings Settings
	// Sockets makes sockets in the pod's network namespace.
	Sockets Sockets
	// Party is the pod's share of the proxy's work; nil: nothing is held back.
	Party *share.Party
	// Source tells the pod's canonical service and revision, for the metrics.
	Source func() (service, revision string)
	// Families tells which address families the pod has, as far as that is known: of another one it gets no address, which it
	// could not connect to.
	Families func() (ipv4, ipv6 bool)
}

// Server answers the queries of one pod.
type Server struct {
	node     *Node
	cfg      Config
	settings Settings
	names    names
	cache    cache
	logger   *slog.Logger

	ctx      context.Context // of queries that are sent on
	cancel   context.CancelFunc
	forwards chan struct{}    // a token each
	queries  chan struct{}    // a token each that came by UDP
	packets  []net.PacketConn // read by servePackets, which closes them
	servers  []*dns.Server    // of TCP
	serving  sync.WaitGroup
	last     atomic.Int64 // when the last query came, in Unix nanoseconds
	pending  atomic.Int64 // queries that are not answered yet
	source   atomic.Pointer[telemetry.DNSSource]
	sourceMu sync.Mutex // held to change source
}

// Serve answers what comes on the sockets, which it owns from now on, until Close.
func (n *Node) Serve(c Config, packets []net.PacketConn, listeners []net.Listener) *Server {
	s := &Server{node: n, cfg: c, settings: c.Settings, packets: packets, logger: n.Logger.With("namespace", c.Namespace),
		forwards: make(chan struct{}, podForwards), queries: make(chan struct{}, podQueries+len(packets))} // each socket's reader holds one
	if s.settings.Equal(Settings{}) {
		s.settings = clusterSettings(c.Namespace, n.ClusterDomain)
	}
	s.names = names{directory: n.Directory, namespace: c.Namespace, network: n.Network, clusterID: n.ClusterID, clusterDomain: n.ClusterDomain}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.source.Store(n.Metrics.Source(c.Source()))
	for _, p := range packets {
		s.serving.Go(func() { s.servePackets(p) })
	}
	conns := make(chan struct{}, maxConns)
	for _, l := range listeners {
		s.servers = append(s.servers, &dns.Server{
			Listener: &limitedListener{Listener: l, conns: conns, party: c.Party}, Handler: dns.HandlerFunc(s.serveStream),
			ReadTimeout: connIdle, WriteTimeout: connIdle, IdleTimeout: func() time.Duration { return connIdle }, MaxTCPQueries: connQueries,
		})
	}
	for _, server := range s.servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		failed := make(chan struct{})
		s.serving.Go(func() {
			defer close(failed)
			if err := server.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				s.logger.Error("DNS proxy of a pod cannot go on", "error", err)
			}
		})
		select {
		case <-started:
		case <-failed:
		}
	}
	return s
}

// Linger returns once no query has come for a while, or at once if another process reads from the sockets, but not before
// what has come is answered, unless the context ends. Queries are answered meanwhile.
func (s *Server) Linger(ctx context.Context, elsewhere bool) {
	begin := time.Now().UnixNano()
	tick := time.NewTicker(quietLook)
	defer tick.Stop()
	for s.pending.Load() > 0 || !elsewhere && time.Now().UnixNano()-max(begin, s.last.Load()) < int64(quietTime) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Close closes the sockets, gives up queries that wait for resolvers, and returns when all is over.
func (s *Server) Close() {
	s.cancel()
	for _, p := range s.packets {
		if err := p.SetReadDeadline(time.Unix(1, 0)); err != nil {
			s.logger.Debug("end a DNS server", "error", err) // it had failed before
		}
	}
	for _, server := range s.servers {
		if err := server.Shutdown(); err != nil {
			s.logger.Debug("end a DNS server", "error", err) // it had failed before
		}
	}
	s.serving.Wait()
	s.source.Load().Close()
}

// counters are those of what the pod is now.
func (s *Server) counters() *telemetry.DNSSource {
	service, revision := s.cfg.Source()
	if c := s.source.Load(); c.Same(service, revision) {
		return c
	}
	s.sourceMu.Lock()
	defer s.sourceMu.Unlock()
	c := s.source.Load()
	if !c.Same(service, revision) {
		c.Close()
		c = s.node.Metrics.Source(service, revision)
		s.source.Store(c)
	}
	return c
}

// begin notes that a query has come.
func (s *Server) begin() {
	s.pending.Add(1)
	s.last.Store(time.Now().UnixNano())
}

// serveStream answers a query that came by TCP. Those of one connection come one after the other.
func (s *Server) serveStream(w dns.ResponseWriter, q *dns.Msg) {
	s.begin()
	defer s.pending.Add(-1)
	s.cfg.Party.Asks(workPerQuery)
	m := s.answer("tcp", q, addrPort(w.RemoteAddr()), addrPort(w.LocalAddr()))
	s.finish(m, q, "tcp")
	if err := w.WriteMsg(m); err != nil && s.ctx.Err() == nil {
		s.logger.Debug("answer a query", "error", err)
	}
}

// answer answers one query.
func (s *Server) answer(network string, q *dns.Msg, client, local netip.AddrPort) *dns.Msg {
	if len(q.Question) != 1 {
		return new(dns.Msg).SetRcodeFormatError(q)
	}
	qtype := typeLabel(q.Question[0].Qtype)
	count := s.counters()
	count.Request(qtype, network)
	f, ours := s.local(q)
	if ours && !f.outside {
		if m := s.reply(q, f); m != nil {
			return m
		}
	}
	servers := s.upstreams(network, client, local)
	key, keep := cacheKey{}, false
	if len(servers) > 0 {
		key, keep = keyOf(q, servers[0])
	}
	var m *dns.Msg
	if keep {
		if m = s.cache.get(key, time.Now()); m != nil {
			count.Cached(qtype, network)
			m.Id = q.Id
		}
	}
	if m == nil {
		begin := time.Now()
		var err error
		m, err = s.forward(q, servers)
		count.Upstream(qtype, network, time.Since(begin), err != nil)
		if err != nil {
			s.logger.Debug("query was not answered", "name", q.Question[0].Name, "type", qtype, "servers", servers, "error", err)
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
		if keep {
			s.cache.put(key, m.Copy(), time.Now())
		}
	}
	if f.outside && knowsNothing(m) {
		if own := s.reply(q, f); own != nil {
			return own
		}
	}
	if ours && m.Rcode == dns.RcodeNameError {
		m.Rcode = dns.RcodeSuccess // the name exists, if only in the mesh
	}
	m.Question = q.Question // in the very case that was asked
	return m
}

// finish has an answer fit, and charges the pod for what it holds.
func (s *Server) finish(m, q *dns.Msg, network string) {
	s.cfg.Party.Did(workPerRecord * share.Work(len(m.Answer)+len(m.Ns)+len(m.Extra)))
	fit(m, q, network)
}

// local finds what the mesh has to say about a query.
func (s *Server) local(q *dns.Msg) (found, bool) {
	if q.Opcode != dns.OpcodeQuery || q.Question[0].Qclass != dns.ClassINET {
		return found{}, false
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		return found{}, false
	}
	name, ok := canonical(q.Question[0].Name)
	if !ok || name == "" {
		return found{}, false
	}
	return s.names.lookUp(name, q.Question[0].Qtype, s.settings)
}

// knowsNothing tells whether an answer is that there is no such record, or that the resolver is not for such names. One that
// fails may know better another time.
func knowsNothing(m *dns.Msg) bool {
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		return !answers(m)
	case dns.RcodeRefused, dns.RcodeNotImplemented:
		return true
	}
	return false
}

// reachable is what was found without addresses of a family that the pod has not.
func (s *Server) reachable(f found) found {
	ipv4, ipv6 := s.cfg.Families()
	if ipv4 && ipv6 {
		return f
	}
	other := func(a netip.Addr) bool { return a.Is4() && !ipv4 || a.Is6() && !ipv6 }
	f.addrs = slices.DeleteFunc(slices.Clone(f.addrs), other)
	f.targets = slices.Clone(f.targets)
	for i := range f.targets {
		f.targets[i].addrs = slices.DeleteFunc(slices.Clone(f.targets[i].addrs), other)
	}
	f.targets = slices.DeleteFunc(f.targets, func(t target) bool { return len(t.addrs) == 0 })
	return f
}

// upstreams are where a query goes that is not the mesh's: where the program sent it.
func (s *Server) upstreams(network string, client, local netip.AddrPort) []netip.AddrPort {
	if original, ok := s.cfg.Sockets.Original(network, client, local); ok {
		return []netip.AddrPort{original}
	}
	if len(s.settings.Servers) > 0 {
		return s.settings.Servers
	}
	return s.node.Fallback
}

// errBusy is why a query is not sent on.
var errBusy = errors.New("too many queries wait for resolvers")

func (s *Server) forward(q *dns.Msg, servers []netip.AddrPort) (*dns.Msg, error) {
	for _, tokens := range []chan struct{}{s.forwards, s.node.forwards} {
		select {
		case tokens <- struct{}{}:
			defer func() { <-tokens }()
		default:
			return nil, errBusy
		}
	}
	s.cfg.Party.Did(workPerForward)
	return forward(s.ctx, s.cfg.Sockets, q, servers)
}

// reply makes an answer of what the mesh knows, or nil if others know more.
func (s *Server) reply(q *dns.Msg, f found) *dns.Msg {
	asked := q.Question[0]
	switch asked.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		if len(f.addrs) == 0 {
			return nil
		}
	case dns.TypeSRV:
		if len(f.targets) == 0 {
			return nil
		}
	default:
		return nil
	}
	f = s.reachable(f)
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	owner := asked.Name
	if name, _ := canonical(asked.Name); name != f.name {
		owner = dns.Fqdn(f.name)
		m.Answer = append(m.Answer, &dns.CNAME{Target: owner,
			Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: f.ttl}})
	}
	if asked.Qtype == dns.TypeSRV {
		addTargets(m, owner, f)
	} else {
		m.Answer = append(m.Answer, addresses(owner, asked.Qtype, f.addrs, f.ttl)...)
	}
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
	}
	return m
}

func addresses(owner string, qtype uint16, addrs []netip.Addr, ttl uint32) []dns.RR {
	var out []dns.RR
	for _, a := range addrs {
		header := dns.RR_Header{Name: owner, Rrtype: qtype, Class: dns.ClassINET, Ttl: ttl}
		switch {
		case qtype == dns.TypeA && a.Is4():
			out = append(out, &dns.A{Hdr: header, A: a.AsSlice()})
		case qtype == dns.TypeAAAA && a.Is6():
			out = append(out, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	return out
}

// fit has an answer fit into what the program takes, and speak EDNS if the program does.
func fit(m, q *dns.Msg, network string) {
	size := dns.MinMsgSize
	opt := q.IsEdns0()
	if opt != nil {
		size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		if m.IsEdns0() == nil {
			m.SetEdns0(maxUDP, opt.Do())
		}
	} else {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	if network == "tcp" {
		size = dns.MaxMsgSize
	}
	m.Compress = true
	if m.Len() > size {
		// Additional records go first: an answer without them is whole (RFC 2181, section 9).
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype != dns.TypeOPT })
	}
	m.Truncate(size)
}

// typeLabel is a query type as a metric's label; rare ones share one, since a program may ask for any.
func typeLabel(t uint16) string {
	switch t {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypePTR, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeCNAME,
		dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY, dns.TypeNAPTR, dns.TypeCAA:
		return strings.ToLower(dns.TypeToString[t])
	}
	return "other"
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// limitedListener closes connections beyond a number.
type limitedListener struct {
	net.Listener
	conns chan struct{} // a token each, of all listeners of the pod
	party *share.Party
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.party.Asks(workPerConn)
		select {
		case l.conns <- struct{}{}:
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.conns })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
