package discover

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/ambit-mesh/ambit/cni/resolver"
)

// ErrNotRunning says that a pod has no network namespace.
var ErrNotRunning = errors.New("no process of the pod runs in a network namespace with one of its addresses")

// fresh is how long one look at all processes serves, so that a hundred pods that are enrolled at once cost one.
const fresh = time.Second

// Node finds pods' network namespaces. Its methods may be called at once.
type Node struct {
	// HostProc is the host's /proc, NetNSDir its /run/netns, as the caller sees them.
	HostProc, NetNSDir string

	mu   sync.Mutex // guards the fields below
	pods map[string][]Candidate
	at   time.Time
}

func (n *Node) look() (map[string][]Candidate, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods != nil && time.Since(n.at) < fresh {
		return n.pods, nil
	}
	pods, err := Pods(n.HostProc)
	if err != nil {
		return nil, err
	}
	n.pods, n.at = pods, time.Now()
	return pods, nil
}

// open opens a candidate, unless the process that led to it has ended, and its number may lead elsewhere.
func (n *Node) open(c Candidate) (ns.NetNS, error) {
	netns, err := open(c.Path, n.HostProc)
	if err != nil {
		return nil, err
	}
	if number, err := Inode(netns); err != nil || number != c.Inode {
		netns.Close()
		return nil, fs.ErrNotExist
	}
	return netns, nil
}

// Find returns the network namespace in which a pod's processes run and that has one of the addresses. The caller closes
// it.
func (n *Node) Find(uid string, addrs []netip.Addr) (ns.NetNS, error) {
	pods, err := n.look()
	if err != nil {
		return nil, err
	}
	for _, c := range pods[uid] {
		netns, err := n.open(c)
		if err != nil {
			continue // it has ended since it was found
		}
		have, err := Addresses(netns)
		if err == nil && slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(have, a.Unmap()) }) {
			return netns, nil
		}
		netns.Close()
	}
	return nil, fmt.Errorf("pod %s: %w", uid, ErrNotRunning)
}

// Resolver returns what the resolv.conf of a pod's oldest process says that can be read.
func (n *Node) Resolver(uid string) (resolver.Settings, error) {
	pods, err := n.look()
	if err != nil {
		return resolver.Settings{}, err
	}
	err = ErrNotRunning
	for _, c := range pods[uid] {
		var s resolver.Settings
		if s, err = resolver.Read(filepath.Join(strings.TrimSuffix(c.Path, "ns/net"), "root")); err == nil && len(s.Servers) > 0 {
			return s, nil
		}
	}
	return resolver.Settings{}, fmt.Errorf("resolvers of pod %s: %w", uid, err)
}

// All returns the network namespaces of all pods that run, by UID. The caller closes them.
func (n *Node) All() (map[string][]ns.NetNS, error) {
	pods, err := Pods(n.HostProc)
	if err != nil {
		return nil, err
	}
	out := map[string][]ns.NetNS{}
	for uid, list := range pods {
		for _, c := range list {
			if netns, err := n.open(c); err == nil {
				out[uid] = append(out[uid], netns)
			}
		}
	}
	return out, nil
}

// Running returns the inodes of the network namespaces of all pods that run, by UID.
func (n *Node) Running() (map[string][]uint64, error) {
	pods, err := Pods(n.HostProc)
	if err != nil {
		return nil, err
	}
	out := map[string][]uint64{}
	for uid, list := range pods {
		for _, c := range list {
			out[uid] = append(out[uid], c.Inode)
		}
	}
	return out, nil
}

// Open opens a network namespace by its path on the host. It refuses the host's own.
func (n *Node) Open(path string) (ns.NetNS, error) {
	clean := filepath.Clean(path)
	switch dir := filepath.Dir(clean); {
	case dir == "/var/run/netns" || dir == "/run/netns":
		clean = filepath.Join(n.NetNSDir, filepath.Base(clean))
	case strings.HasPrefix(clean, "/proc/"):
		clean = filepath.Join(n.HostProc, strings.TrimPrefix(clean, "/proc"))
	default:
		clean = filepath.Join(n.HostProc, "1/root", clean)
	}
	return open(clean, n.HostProc)
}
