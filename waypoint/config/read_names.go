package config

import (
	"strings"
	"time"

	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// typeInspector is the type URL of the listener filter that looks for the names of servers.
const typeInspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"

// defaultHelloTime is Envoy's listener_filters_timeout.
const defaultHelloTime = 15 * time.Second

// listenerFilters reads the filters of main_internal. It returns how long clients may take to name a server, and whether that is
// looked for at all. Where it is looked for is what the matcher says: nothing is read of clients of other destinations.
func (d decoder) listenerFilters(l *listenerv3.Listener) (timeout time.Duration, inspects bool) {
	for i, f := range l.GetListenerFilters() {
		at := root.Field("listener_filters").Index(i).Field("typed_config")
		if f.GetTypedConfig().GetTypeUrl() == typeInspector {
			inspects = true
			d.unpack(f.GetTypedConfig(), &inspectorv3.TlsInspector{}, at)
		} else {
			d.unpack(f.GetTypedConfig(), &originaldstv3.OriginalDst{}, at)
		}
	}
	return d.duration(l.GetListenerFiltersTimeout(), root.Field("listener_filters_timeout"), defaultHelloTime), inspects
}

// byName reads the level of a matcher that looks at the name of the server.
func (d decoder) byName(m *matcherv3.Matcher, chains inboundRead, at *strict.Path) *Chain {
	if !chains.inspects {
		d.add(at, "listener_filters must have a tls_inspector for it")
	}
	out := &Names{Timeout: chains.timeout, exact: map[string]*Chain{}, under: map[string]*Chain{}}
	if rest := m.GetOnNoMatch(); rest != nil {
		d.noMatch(rest, at.Field("on_no_match"))
		out.rest = chains.sources[d.chainName(rest, at.Field("on_no_match"))].chain
	}
	t := m.GetMatcherTree()
	at = at.Field("matcher_tree")
	d.input(t.GetInput(), &networkv3.ServerNameInput{}, at.Field("input"))
	at = at.Field("custom_match")
	var all matcherv3.ServerNameMatcher
	if t.GetCustomMatch() == nil {
		d.add(at, "required, a ServerNameMatcher")
	} else if d.unpack(t.GetCustomMatch().GetTypedConfig(), &all, at.Field("typed_config")) {
		for i, dm := range all.GetDomainMatchers() {
			at := at.Field("typed_config").Field("domain_matchers").Index(i)
			chain, ok := d.action(dm.GetOnMatch(), chains, at.Field("on_match"))
			for k, domain := range dm.GetDomains() {
				if ok {
					d.name(out, domain, chain, at.Field("domains").Index(k))
				}
			}
		}
	}
	return &Chain{Name: t.GetCustomMatch().GetName(), Names: out}
}

// name enters what serves a name. A nil chain refuses it.
func (d decoder) name(to *Names, domain string, chain *Chain, at *strict.Path) {
	key, into := strings.ToLower(domain), to.exact
	if suffix, wild := strings.CutPrefix(key, "*."); wild {
		key, into = suffix, to.under
	}
	if _, twice := into[key]; twice {
		d.add(at, "%q is there already", domain)
	} else if key == "" || strings.Contains(key, "*") {
		d.add(at, "a host name, or *. and a host name, not %q", domain)
	}
	into[key] = chain
}

// action reads the end of a matcher: the chain that it leads to, nil if that cannot be honoured. What is not right is reported.
func (d decoder) action(m *matcherv3.Matcher_OnMatch, chains inboundRead, at *strict.Path) (*Chain, bool) {
	name := d.chainName(m, at)
	if name == "" {
		return nil, false
	}
	src, ok := chains.sources[name]
	if !ok && !chains.bad[name] {
		d.add(at.Field("action").Field("typed_config"), "there is no filter chain %q", name)
	}
	return src.chain, ok || chains.bad[name]
}

// chainName reads an action, which is the name of a chain; "" if it is none.
func (d decoder) chainName(m *matcherv3.Matcher_OnMatch, at *strict.Path) string {
	var name wrapperspb.StringValue
	d.unpack(m.GetAction().GetTypedConfig(), &name, at.Field("action").Field("typed_config"))
	return name.GetValue()
}
