package resolver

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Limits of a resolv.conf. Those of lists are Kubernetes'; what is beyond them is left out.
const (
	maxFile    = 64 << 10
	maxServers = 3
	maxSearch  = 32
	maxBytes   = 2048 // of all search domains together
	maxNDots   = 15
	// defaultNDots is resolv.conf's, clusterNDots kubelet's for pods that use the cluster's DNS.
	defaultNDots = 1
	clusterNDots = 5
)

// Settings are what a resolv.conf says. They are not changed once made.
type Settings struct {
	Servers, Search []string
	NDots           int
}

// Parse reads a resolv.conf. Lines that it does not understand it leaves out, as resolvers do.
func Parse(text []byte) Settings {
	s := Settings{NDots: defaultNDots}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			s.Servers = append(s.Servers, fields[1])
		case "search", "domain":
			s.Search = fields[1:] // the last line counts
		case "options":
			for _, o := range fields[1:] {
				if text, ok := strings.CutPrefix(o, "ndots:"); ok {
					s.setNDots(text)
				}
			}
		}
	}
	return s.bounded()
}

func (s *Settings) setNDots(text string) {
	if n, err := strconv.Atoi(text); err == nil {
		s.NDots = min(max(n, 0), maxNDots)
	}
}

func (s Settings) bounded() Settings {
	s.Servers = s.Servers[:min(len(s.Servers), maxServers)]
	s.Search = s.Search[:min(len(s.Search), maxSearch)]
	total := 0
	for i, domain := range s.Search {
		if total += len(domain) + 1; total > maxBytes {
			s.Search = s.Search[:i]
			break
		}
	}
	return s
}

// Read reads the resolv.conf of the container whose root directory this is. Links in it lead nowhere outside.
func Read(root string) (Settings, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Settings{}, fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(dir)
	// Not blocking: the container may have put a pipe there.
	fd, err := unix.Openat2(dir, "etc/resolv.conf", &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return Settings{}, fmt.Errorf("open %s/etc/resolv.conf: %w", root, err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(root, "etc/resolv.conf"))
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return Settings{}, fmt.Errorf("read %s: not a regular file", f.Name())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Settings{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return Parse(text), nil
}

// Wish is what a pod asks of kubelet. The zero value asks for nothing in particular.
type Wish struct {
	Policy corev1.DNSPolicy
	Config *corev1.PodDNSConfig
}

// Node is what kubelet gives the pods of a node. The zero value knows nothing.
type Node struct {
	// Cluster is what pods have that use the cluster's DNS; its first search domain is that of the pod's namespace.
	Cluster Settings
	// Host is the node's own.
	Host Settings

	domain string // of the cluster; empty if Cluster is not known
}

// NewNode learns a node's settings from those of a pod of a namespace that uses the cluster's DNS, which the agent's own does,
// and from the node's own.
func NewNode(pod Settings, namespace string, host Settings) Node {
	n := Node{Cluster: pod, Host: host}
	if len(pod.Search) > 0 {
		n.domain, _ = strings.CutPrefix(pod.Search[0], namespace+".svc.")
		if n.domain == pod.Search[0] {
			n.domain = ""
		}
	}
	return n
}

// Predict returns what kubelet will write into the resolv.conf of a pod of a namespace, and whether that is known.
func (n Node) Predict(namespace string, w Wish) (Settings, bool) {
	var s Settings
	switch w.Policy {
	case corev1.DNSNone:
		s.NDots = defaultNDots
	case corev1.DNSDefault:
		if len(n.Host.Servers) == 0 {
			return Settings{}, false
		}
		s = n.Host
	default: // a pod that has a network of its own uses the cluster's with all other policies
		if n.domain == "" {
			return Settings{}, false
		}
		s = Settings{Servers: n.Cluster.Servers, NDots: clusterNDots, Search: slices.Clone(n.Cluster.Search)}
		s.Search[0] = namespace + ".svc." + n.domain
	}
	if c := w.Config; c != nil {
		s.Servers = merged(s.Servers, c.Nameservers)
		s.Search = merged(s.Search, c.Searches)
		for _, o := range c.Options {
			if o.Name == "ndots" && o.Value != nil {
				s.setNDots(*o.Value)
			}
		}
	}
	return s.bounded(), true
}

// merged appends what is not there yet.
func merged(have, more []string) []string {
	out := slices.Clone(have)
	for _, m := range more {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}
