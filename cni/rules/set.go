package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/xtables"
)

// Config is what of a pod decides its rules. The zero value captures both directions, IPv4 only.
type Config struct {
	// BypassInbound leaves inbound connections alone (api.AnnotationBypassInbound); outbound ones are captured.
	BypassInbound bool
	// IPv6 adds the same rules for IPv6.
	IPv6 bool
	// DNS redirects the pod's name queries, UDP and TCP.
	DNS bool
}

// Names of the chains. The first two are those of Istio ambient, so that either agent recognises, repairs and removes
// the rules of the other. A sidecar uses the name chainOutput too; see owner. Other chains, of later releases too, begin
// with ownPrefix, so that every release finds those of every other.
const (
	chainPrerouting = "ISTIO_PRERT"
	chainOutput     = "ISTIO_OUTPUT"
	ownPrefix       = "AMBIT_"
	chainGuard      = ownPrefix + "GUARD"
)

// Stage says when a chain is hooked and un-hooked.
type Stage int

const (
	// Carry: the chain carries connections that were redirected. Hooked by Fill, un-hooked by Remove.
	Carry Stage = iota
	// Guard: the chain stops what would slip past capture. Hooked by Hook, un-hooked by Remove, since connections that
	// were redirected need it too.
	Guard
	// Capture: the chain redirects new connections. Hooked by Hook, un-hooked by Unhook.
	Capture
)

// Rule is one rule of a chain.
type Rule struct {
	// Spec are iptables' arguments in the order and spelling in which `iptables -S` prints them back.
	Spec string
	// Why says in plain words what the rule is for.
	Why string
}

// Chain is one of our chains and the built-in chain that it is hooked to.
type Chain struct {
	Table, Name, Hook string
	Stage             Stage
	// Rules may be empty; then the chain is not there.
	Rules []Rule
}

// FamilySet is the part of a Set that belongs to one address family.
type FamilySet struct {
	Family xtables.Family
	Chains []Chain
	// Route is the destination of the local route in api.RouteTable.
	Route netip.Prefix
	// Probe is the address from which kubelet's probes come.
	Probe netip.Prefix
}

// Set is the desired state of a pod's network namespace. Sets are values: equal Configs give equal Sets.
type Set struct {
	Families []FamilySet
}

// For returns the rules of a captured pod.
func For(c Config) Set {
	s := Set{Families: []FamilySet{forFamily(c, xtables.IPv4)}}
	if c.IPv6 {
		s.Families = append(s.Families, forFamily(c, xtables.IPv6))
	}
	return s
}

func forFamily(c Config, f xtables.Family) FamilySet {
	loopback, source, all := "127.0.0.1/32", api.ProbeSourceIPv4, netip.MustParsePrefix("0.0.0.0/0")
	if f == xtables.IPv6 {
		loopback, source, all = "::1/128", api.ProbeSourceIPv6, netip.MustParsePrefix("::/0")
	}
	from := netip.PrefixFrom(source, source.BitLen())
	probe := from.String()
	mark := fmt.Sprintf("%#x/%#x", api.MarkProxy, api.MarkProxyMask)
	connmark := fmt.Sprintf("%#x/%#x", api.ConnmarkInbound, api.ConnmarkMask)
	inbound := Chain{Table: "nat", Name: chainPrerouting, Hook: "PREROUTING", Stage: Capture}
	if !c.BypassInbound {
		inbound.Rules = []Rule{
			rule("-s "+probe+" -p tcp -j ACCEPT",
				"kubelet's probes reach the application in plain"),
			rule("! -d "+loopback+" -p tcp -m tcp ! --dport "+strconv.Itoa(api.PortHBONE)+" -m mark ! --mark "+mark+
				" -j REDIRECT --to-ports "+strconv.Itoa(api.PortInbound),
				"plaintext connections to the pod go to the proxy; tunnels go to their own port"),
		}
	}
	set := FamilySet{Family: f, Route: all, Probe: from, Chains: []Chain{
		{Table: "mangle", Name: chainPrerouting, Hook: "PREROUTING", Rules: []Rule{
			rule("-m mark --mark "+mark+" -j CONNMARK --set-xmark "+connmark,
				"remember connections that the proxy opens to the application under the client's address"),
		}},
		{Table: "mangle", Name: chainOutput, Hook: "OUTPUT", Rules: []Rule{
			rule("-m connmark --mark "+connmark+" -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
				"route what the application answers on those back to the proxy"),
		}},
		{Table: "mangle", Name: chainGuard, Hook: "OUTPUT", Stage: Guard, Rules: []Rule{
			rule("! -o lo -p tcp -m tcp ! --tcp-flags RST RST -m mark ! --mark "+mark+
				" -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
				"segments that connection tracking refuses skip the nat table and would leave in plain"),
		}},
		inbound,
		{Table: "nat", Name: chainOutput, Hook: "OUTPUT", Stage: Capture, Rules: []Rule{
			rule("-d "+probe+" -p tcp -j ACCEPT",
				"answers to kubelet's probes"),
			rule("-p tcp -m mark --mark "+connmark+" -j ACCEPT",
				"answers of the application to the proxy"),
			rule("! -d "+loopback+" -o lo -j ACCEPT",
				"a pod that calls its own address stays inside"),
			rule("! -d "+loopback+" -p tcp -m mark ! --mark "+mark+
				" -j REDIRECT --to-ports "+strconv.Itoa(api.PortOutbound),
				"connections of the pod go to the proxy, but not the proxy's own"),
		}},
	}}
	if c.DNS {
		set.addDNS(loopback, mark)
	}
	return set
}

// addDNS adds what brings name queries to the proxy. The zones keep the proxy's own queries apart in connection tracking: a
// port that it sends from may have been a program's a moment before, whose redirection is still remembered.
func (f *FamilySet) addDNS(loopback, mark string) {
	to := " -m mark ! --mark " + mark + " -j REDIRECT --to-ports " + strconv.Itoa(api.PortDNS)
	for i := range f.Chains {
		if c := &f.Chains[i]; c.Table == "nat" && c.Name == chainOutput {
			c.Rules = slices.Insert(c.Rules, 1,
				rule("! -o lo -p udp -m udp --dport 53"+to, "name queries of the pod go to the proxy, but not the proxy's own"),
				rule("! -d "+loopback+" -p tcp -m tcp --dport 53"+to, "and so do those by TCP"))
		}
	}
	zone := strconv.Itoa(zoneDNS)
	f.Chains = append(f.Chains,
		Chain{Table: "raw", Name: chainOutput, Hook: "OUTPUT", Rules: []Rule{
			rule("-p udp -m udp --dport 53 -m mark --mark "+mark+" -j CT --zone "+zone, "the proxy's own name queries are tracked apart"),
		}},
		Chain{Table: "raw", Name: chainPrerouting, Hook: "PREROUTING", Rules: []Rule{
			rule("-p udp -m udp --sport 53 -m mark ! --mark "+mark+" -j CT --zone "+zone, "and so are the answers to them"),
		}},
	)
}

// zoneDNS is the connection tracking zone of the proxy's own name queries (Istio's value).
const zoneDNS = 1

func rule(spec, why string) Rule { return Rule{Spec: spec, Why: why} }

// kernel is the chain without the words.
func (c Chain) kernel() xtables.Chain {
	out := xtables.Chain{Table: c.Table, Hook: c.Hook, Name: c.Name}
	for _, r := range c.Rules {
		out.Rules = append(out.Rules, r.Spec)
	}
	return out
}

// String prints the set as commands, each with its reason, in the order in which Apply brings them about.
func (s Set) String() string {
	var b strings.Builder
	for i, f := range s.Families {
		if i > 0 {
			b.WriteString("\n")
		}
		f.write(&b)
	}
	return b.String()
}

func (f FamilySet) write(b *strings.Builder) {
	command, ip := "iptables", "ip"
	if f.Family == xtables.IPv6 {
		command, ip = "ip6tables", "ip -6"
	}
	fmt.Fprintf(b, "%s rule add pref %d fwmark %#x/%#x lookup %d\n", ip, api.RoutePreference,
		api.ConnmarkInbound, api.ConnmarkMask, api.RouteTable)
	fmt.Fprintf(b, "%s route add local %s dev lo table %d\n", ip, f.Route, api.RouteTable)
	for _, c := range f.Chains {
		if len(c.Rules) == 0 {
			continue
		}
		fmt.Fprintf(b, "%s -t %s -N %s\n", command, c.Table, c.Name)
		for _, r := range c.Rules {
			fmt.Fprintf(b, "%s -t %s -A %s %s\n    # %s\n", command, c.Table, c.Name, r.Spec, r.Why)
		}
	}
	for _, stage := range []Stage{Carry, Guard, Capture} {
		for _, c := range f.Chains {
			if c.Stage == stage && len(c.Rules) > 0 {
				fmt.Fprintf(b, "%s -t %s -I %s 1 -j %s\n", command, c.Table, c.Hook, c.Name)
			}
		}
	}
}
