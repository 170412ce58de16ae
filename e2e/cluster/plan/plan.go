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

// Options are the choices that are made when a cluster is brought up.
type Options struct {
	StateDir string       // absolute; everything that belongs to this cluster's life is below it
	BinDir   string       // absolute; the built programs
	Link     netip.Prefix // /24 for the machines; see ChooseLink
	IPv6     bool
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
	Addresses []netip.Addr   // IPv4 first
	PodRanges []netip.Prefix // one per family, IPv4 first
	Zone      string
}

// Hardware is the address of the node's uplink: as that of a real machine it stays the same over a power cut, so that the
// other machines find the node again at once. It is a locally administered one (IEEE 802, second-lowest bit of the first
// octet).
func (n Node) Hardware() net.HardwareAddr {
	a := n.Addresses[0].As4()
	return net.HardwareAddr{0x02, 0x00, a[0], a[1], a[2], a[3]}
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

// linkChoices are tried in order: networks that few people use.
func linkChoices() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.89.0.0/24"),
		netip.MustParsePrefix("10.189.77.0/24"),
		netip.MustParsePrefix("172.29.89.0/24"),
		netip.MustParsePrefix("192.168.189.0/24"),
		netip.MustParsePrefix("198.18.89.0/24"),
	}
}

// ChooseLink returns a network for the machines that does not overlap the networks that are taken.
func ChooseLink(taken []netip.Prefix) (netip.Prefix, error) {
	for _, choice := range linkChoices() {
		free := true
		for _, t := range taken {
			free = free && !choice.Overlaps(t)
		}
		if free {
			return choice, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose a network for the nodes: all of %v overlap networks of this machine", linkChoices())
}

// New plans a cluster of two nodes.
func New(o Options) Plan {
	if o.ProxyMode == "" {
		o.ProxyMode = "iptables"
	}
	p := Plan{
		Options:       o,
		PodRanges:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		ServiceRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		API:           host4(o.Link, 1),
		Gateways:      []netip.Addr{host4(o.Link, 1)},
		Host:          host4(o.Link, 254),
		DNS:           netip.MustParseAddr("10.96.0.10"),
	}
	if o.IPv6 {
		p.PodRanges = append(p.PodRanges, netip.MustParsePrefix("fd00:10:244::/48"))
		p.ServiceRanges = append(p.ServiceRanges, netip.MustParsePrefix("fd00:10:96::/112"))
		p.Gateways = append(p.Gateways, netip.MustParseAddr("fd00:10:89::1"))
	}
	for i := 1; i <= 2; i++ {
		n := Node{
			Name:      fmt.Sprintf("node%d", i),
			Addresses: []netip.Addr{host4(o.Link, byte(10+i))},
			PodRanges: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i))},
			Zone:      fmt.Sprintf("zone%d", i),
		}
		n.NetNS = NetNS(n.Name)
		if o.IPv6 {
			n.Addresses = append(n.Addresses, netip.MustParseAddr(fmt.Sprintf("fd00:10:89::1%d", i)))
			n.PodRanges = append(n.PodRanges, netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i)))
		}
		p.Nodes = append(p.Nodes, n)
	}
	return p
}

// NetNS returns the name of a machine's network namespace.
func NetNS(machine string) string { return "ambit-" + machine }

// NetNSNames returns the names of all network namespaces of a cluster. They are the same for every cluster, so that what
// another left can be found by them.
func NetNSNames() []string { return []string{NetNS(ControlPlane), NetNS("node1"), NetNS("node2")} }

// Server is the address of the API server, from inside and from outside.
func (p Plan) Server() string { return fmt.Sprintf("https://%s:%d", p.API, apiPort) }

// Bits returns the length of the link network's prefix that an address belongs to.
func (p Plan) Bits(a netip.Addr) int {
	if a.Is4() {
		return p.Link.Bits()
	}
	return 64
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

func host4(link netip.Prefix, last byte) netip.Addr {
	b := link.Addr().As4()
	b[3] = last
	return netip.AddrFrom4(b)
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
