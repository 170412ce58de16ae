package plan

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
)

const (
	// HostLink is the machine's own end of its link to the cluster: all that the cluster puts into the machine's own network.
	HostLink = "ambit-host"

	// Cgroup is the folder at the root of every cgroup hierarchy below which all processes of the cluster live.
	Cgroup = "ambit"

	// ControlPlane is the name of the machine that runs etcd and the Kubernetes control plane.
	ControlPlane = "cp"

	// Uplink is a node's link to the other machines, in the node's own network namespace. All traffic between nodes
	// passes it. Its other end, in the control plane's namespace, has the node's name.
	Uplink = "eth0"

	// Bridge connects the uplinks, in the control plane's network namespace.
	Bridge = "br0"

	// Domain is the cluster's own DNS domain.
	Domain = "cluster.local"

	apiPort    = 6443
	pauseImage = "docker.io/ambit/pause:dev"
	dnsImage   = "docker.io/ambit/coredns:dev"
)

// Family says which address families nodes, pods and services have.
type Family string

// The families.
const (
	Dual Family = "dual" // both, IPv4 first
	IPv4 Family = "ipv4" // IPv6 is turned off on the nodes
	IPv6 Family = "ipv6" // nodes have no IPv4 address but loopback's
)

// ParseFamily reads the name of a family; the empty one is Dual.
func ParseFamily(name string) (Family, error) {
	switch f := Family(name); f {
	case "":
		return Dual, nil
	case Dual, IPv4, IPv6:
		return f, nil
	}
	return "", fmt.Errorf("unknown address family %q: want %s, %s or %s", name, Dual, IPv4, IPv6)
}

// Has4 and Has6 tell whether the family has IPv4, and IPv6.
func (f Family) Has4() bool { return f != IPv6 }
func (f Family) Has6() bool { return f != IPv4 }

// Options are the choices that are made when a cluster is brought up.
type Options struct {
	StateDir string       // absolute; everything that belongs to this cluster's life is below it
	BinDir   string       // absolute; the built programs
	Link     netip.Prefix // for the machines, of the first family; see ChooseLink
	Family   Family
	CgroupV2 bool

	// CopyImages makes containerd copy an image for every container, for file systems that cannot carry an overlay.
	CopyImages bool

	// ProxyMode is kube-proxy's: "iptables" (if empty) or "nftables".
	ProxyMode string
}

// Node is a Kubernetes node.
type Node struct {
	Name      string
	NetNS     string
	Addresses []netip.Addr   // one per family, IPv4 first
	PodRanges []netip.Prefix // one per family, IPv4 first
	Zone      string
}

// Hardware is the address of the node's uplink: as that of a real machine it stays the same over a power cut, so that the
// other machines find the node again at once. It is a locally administered one (IEEE 802, second-lowest bit of the first
// octet).
func (n Node) Hardware() net.HardwareAddr {
	a := n.Addresses[0].As16() // an IPv4 address is at the end
	return net.HardwareAddr{0x02, 0x00, a[12], a[13], a[14], a[15]}
}

// Plan is a whole cluster.
type Plan struct {
	Options
	Nodes         []Node
	PodRanges     []netip.Prefix // of the cluster
	ServiceRanges []netip.Prefix
	API           netip.Addr   // the API server, and every machine's gateway
	Gateways      []netip.Addr // API's machine, one per family
	Host          netip.Addr   // the machine's own end of its link to the cluster
	DNS           netip.Addr   // the Service of CoreDNS
}

// link6 is the machines' IPv6 network where they have IPv4 too: the machine that they run on has no part in it.
func link6() netip.Prefix { return netip.MustParsePrefix("fd00:10:89::/64") }

// linkChoices are tried in order: networks that few people use, of the family that comes first.
func linkChoices(f Family) []netip.Prefix {
	if !f.Has4() {
		return []netip.Prefix{link6(), netip.MustParsePrefix("fd00:10:189:77::/64"), netip.MustParsePrefix("fdab:89:89::/64")}
	}
	return []netip.Prefix{
		netip.MustParsePrefix("10.89.0.0/24"),
		netip.MustParsePrefix("10.189.77.0/24"),
		netip.MustParsePrefix("172.29.89.0/24"),
		netip.MustParsePrefix("192.168.189.0/24"),
		netip.MustParsePrefix("198.18.89.0/24"),
	}
}

// ChooseLink returns a network for the machines that does not overlap the networks that are taken: a /24 of IPv4, or, for
// machines that have IPv6 only, a /64.
func ChooseLink(f Family, taken []netip.Prefix) (netip.Prefix, error) {
	for _, choice := range linkChoices(f) {
		free := true
		for _, t := range taken {
			free = free && !choice.Overlaps(t)
		}
		if free {
			return choice, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose a network for the nodes: all of %v overlap networks of this machine", linkChoices(f))
}

// ranges are where a cluster's addresses of one family come from.
type ranges struct {
	link           netip.Prefix
	pods, services netip.Prefix
	podBits        int  // of a node's own pod range, whose last byte is the node's number
	nodes          byte // last byte of the address before the first node's
}

func (o Options) ranges() []ranges {
	var out []ranges
	if o.Family.Has4() {
		out = append(out, ranges{o.Link, netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/16"), 24, 10})
	}
	if o.Family.Has6() {
		link := link6()
		if !o.Family.Has4() {
			link = o.Link
		}
		out = append(out, ranges{link, netip.MustParsePrefix("fd00:10:244::/48"), netip.MustParsePrefix("fd00:10:96::/112"), 64, 0x10})
	}
	return out
}

// forNode is a node's own part of the pods' range.
func (r ranges) forNode(number byte) netip.Prefix {
	b := r.pods.Addr().AsSlice()
	b[r.podBits/8-1] = number
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, r.podBits)
}

// New plans a cluster of two nodes.
func New(o Options) Plan {
	if o.ProxyMode == "" {
		o.ProxyMode = "iptables"
	}
	if o.Family == "" {
		o.Family = Dual
	}
	p := Plan{Options: o}
	for i := 1; i <= 2; i++ {
		name := fmt.Sprintf("node%d", i)
		p.Nodes = append(p.Nodes, Node{Name: name, NetNS: NetNS(name), Zone: fmt.Sprintf("zone%d", i)})
	}
	for _, r := range o.ranges() {
		p.PodRanges = append(p.PodRanges, r.pods)
		p.ServiceRanges = append(p.ServiceRanges, r.services)
		p.Gateways = append(p.Gateways, host(r.link, 1))
		for i := range p.Nodes {
			n, number := &p.Nodes[i], byte(i+1)
			n.Addresses = append(n.Addresses, host(r.link, r.nodes+number))
			n.PodRanges = append(n.PodRanges, r.forNode(number))
		}
	}
	p.API = p.Gateways[0]
	p.Host = host(o.Link, 254)
	p.DNS = host(p.ServiceRanges[0], 10)
	return p
}

// NetNS returns the name of a machine's network namespace.
func NetNS(machine string) string { return "ambit-" + machine }

// NetNSNames returns the names of all network namespaces of a cluster. They are the same for every cluster, so that what
// another left can be found by them.
func NetNSNames() []string { return []string{NetNS(ControlPlane), NetNS("node1"), NetNS("node2")} }

// Server is the address of the API server, from inside and from outside.
func (p Plan) Server() string { return "https://" + p.apiAddress() }

func (p Plan) apiAddress() string { return netip.AddrPortFrom(p.API, apiPort).String() }

// Unspecified is what servers bind to that listen on all addresses, of the family that comes first: for some of them it also
// says which one that is.
func (p Plan) Unspecified() netip.Addr {
	if p.API.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// Bits returns the length of the link network's prefix that an address belongs to.
func (p Plan) Bits(a netip.Addr) int {
	if a.Is4() {
		return p.Link.Bits()
	}
	return link6().Bits()
}

// Disk is the folder that holds what a machine keeps over a power cut.
func (p Plan) Disk(machine string) string { return filepath.Join(p.StateDir, "disks", machine) }

// Logs is the folder that holds the logs of a machine's services.
func (p Plan) Logs(machine string) string { return filepath.Join(p.StateDir, "logs", machine) }

// Secrets is the folder that holds keys, certificates and the kubeconfigs of the cluster's own programs.
func (p Plan) Secrets() string { return filepath.Join(p.StateDir, "secrets") }

// SpecFile is the file that describes a machine to its init.
func (p Plan) SpecFile(machine string) string {
	return filepath.Join(p.StateDir, "machines", machine+".json")
}

// host is an address of a network by its last byte.
func host(network netip.Prefix, last byte) netip.Addr {
	b := network.Addr().AsSlice()
	b[len(b)-1] = last
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Node returns the node of that name.
func (p Plan) Node(name string) (Node, error) {
	for _, n := range p.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("no node %q; there are node1 and node2", name)
}
