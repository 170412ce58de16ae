package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Names of the listeners, as Istio gives them.
const (
	listenerTerminate = "connect_terminate"
	listenerInbound   = "main_internal"
	listenerOriginate = "connect_originate"
)

// chainSource is a chain, and what it was read from.
type chainSource struct {
	proto *listenerv3.FilterChain
	chain *Chain
}

// inboundRead is what main_internal says.
type inboundRead struct {
	inbound *inbound
	sources map[string]chainSource // by name
	// bad are the chains that cannot be honoured: those that had a good form before have that one, the others are not there.
	bad map[string]bool
	// timeout is how long clients may take to name a server; inspects tells whether that is looked for.
	timeout  time.Duration
	inspects bool
}

// inbound reads main_internal. Chains that are in old as they are here are taken over.
func (d decoder) inbound(l *listenerv3.Listener, old map[string]chainSource) inboundRead {
	if l.GetInternalListener() == nil {
		d.add(root.Field("internal_listener"), "required")
	}
	out := inboundRead{
		inbound: &inbound{byAddr: map[netip.AddrPort]*Chain{}}, sources: make(map[string]chainSource, len(l.GetFilterChains())), bad: map[string]bool{},
	}
	out.timeout, out.inspects = d.listenerFilters(l)
	for i, c := range l.GetFilterChains() {
		at := root.Field("filter_chains").Index(i)
		if _, twice := out.sources[c.GetName()]; twice {
			d.add(at.Field("name"), "%q is the name of another chain already", c.GetName())
			continue
		}
		src, known := old[c.GetName()]
		if !known || !proto.Equal(src.proto, c) {
			read := chainSource{c, d.chain(c, at)}
			if !d.report.Below(at) {
				src, known = read, true
			} else if out.bad[c.GetName()] = true; !known {
				continue
			}
		}
		out.sources[c.GetName()] = src
		out.inbound.chains = append(out.inbound.chains, src.chain)
	}
	out.inbound.http, out.inbound.tcp = out.sources[chainDirectHTTP].chain, out.sources[chainDirectTCP].chain
	at := root.Field("filter_chain_matcher")
	m := l.GetFilterChainMatcher()
	d.noMatch(m.GetOnNoMatch(), at.Field("on_no_match"))
	if m.GetMatcherTree() != nil {
		d.addresses(m.GetMatcherTree(), out, at.Field("matcher_tree"))
	} else if m == nil {
		d.add(at, "required")
	}
	slices.SortStableFunc(out.inbound.ranges, func(a, b addressRange) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return out
}

// noMatch allows what is done with other destinations to be a chain that is not there: they are refused.
func (d decoder) noMatch(m *matcherv3.Matcher_OnMatch, at *strict.Path) {
	if m != nil && m.GetAction() == nil {
		d.add(at, "an action is required")
	}
}

// addresses reads the level of a matcher that looks at the destination's address.
func (d decoder) addresses(t *matcherv3.Matcher_MatcherTree, out inboundRead, at *strict.Path) {
	d.input(t.GetInput(), &networkv3.DestinationIPInput{}, at.Field("input"))
	if c := t.GetCustomMatch(); c != nil {
		at := at.Field("custom_match").Field("typed_config")
		var m matcherv3.IPMatcher
		if !d.unpack(c.GetTypedConfig(), &m, at) {
			return
		}
		for i, rm := range m.GetRangeMatchers() {
			at := at.Field("range_matchers").Index(i)
			ports := d.ports(rm.GetOnMatch(), out, at.Field("on_match"))
			for k, r := range rm.GetRanges() {
				d.prefix(r, ports, out.inbound, at.Field("ranges").Index(k))
			}
		}
		return
	}
	if t.GetExactMatchMap() == nil {
		d.add(at, "exact_match_map or custom_match is required")
	}
	at = at.Field("exact_match_map").Field("map")
	for _, text := range sortedKeys(t.GetExactMatchMap().GetMap()) {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			d.add(at.Key(text), "%q is no IP address", text)
			continue
		}
		addr = addr.Unmap()
		out.inbound.serve(netip.PrefixFrom(addr, addr.BitLen()), d.ports(t.GetExactMatchMap().GetMap()[text], out, at.Key(text)))
	}
}

func (d decoder) prefix(r *xdscorev3.CidrRange, ports map[uint16]*Chain, out *inbound, at *strict.Path) {
	addr, err := netip.ParseAddr(r.GetAddressPrefix())
	if err != nil || addr.Zone() != "" || addr.Is4In6() {
		d.add(at.Field("address_prefix"), "%q is no IP address", r.GetAddressPrefix())
		return
	}
	p, err := addr.Prefix(int(r.GetPrefixLen().GetValue()))
	if err != nil {
		d.add(at.Field("prefix_len"), "0 to %d, not %d", addr.BitLen(), r.GetPrefixLen().GetValue())
		return
	}
	out.serve(p, ports)
}

// serve enters the chains of a prefix of addresses.
func (l *inbound) serve(p netip.Prefix, ports map[uint16]*Chain) {
	if !p.IsSingleIP() {
		l.ranges = append(l.ranges, addressRange{p, ports})
		return
	}
	for port, c := range ports {
		l.byAddr[netip.AddrPortFrom(p.Addr(), port)] = c
	}
}

// ports reads the level of a matcher that looks at the destination's port.
func (d decoder) ports(m *matcherv3.Matcher_OnMatch, chains inboundRead, at *strict.Path) map[uint16]*Chain {
	at = at.Field("matcher")
	d.noMatch(m.GetMatcher().GetOnNoMatch(), at.Field("on_no_match"))
	t := m.GetMatcher().GetMatcherTree()
	at = at.Field("matcher_tree")
	if t.GetExactMatchMap() == nil {
		d.add(at.Field("exact_match_map"), "required, by destination port")
		return nil
	}
	d.input(t.GetInput(), &networkv3.DestinationPortInput{}, at.Field("input"))
	at = at.Field("exact_match_map").Field("map")
	out := map[uint16]*Chain{}
	for _, text := range sortedKeys(t.GetExactMatchMap().GetMap()) {
		on := t.GetExactMatchMap().GetMap()[text]
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			d.add(at.Key(text), "%q is no port", text)
			continue
		}
		at := at.Key(text)
		if m := on.GetMatcher(); m != nil {
			out[uint16(port)] = d.byName(m, chains, at.Field("matcher"))
		} else if chain, _ := d.action(on, chains, at); chain != nil {
			out[uint16(port)] = chain
		}
	}
	return out
}

// input reports an input of a matcher that is not the one it should be.
func (d decoder) input(in *xdscorev3.TypedExtensionConfig, want proto.Message, at *strict.Path) {
	d.unpack(in.GetTypedConfig(), want, at.Field("typed_config"))
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// readListener reads a listener that is not main_internal.
func readListener(name string, a *anypb.Any) (*Terminate, error) {
	var out *Terminate
	err := decode(a, tunnels, &listenerv3.Listener{}, func(d decoder, l *listenerv3.Listener) {
		d.named("name", l.GetName(), name)
		switch name {
		case listenerTerminate:
			out = d.terminate(l)
		case listenerOriginate:
			d.originate(l)
		default:
			d.add(root.Field("name"), "%q is not known: a waypoint has %s, %s and %s", name, listenerTerminate, listenerInbound, listenerOriginate)
		}
	})
	return out, err
}
