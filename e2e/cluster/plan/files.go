package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"text/template"

	_ "embed"
)

//go:embed containerd.toml.tmpl
var containerdTemplate string

//go:embed kubelet.yaml.tmpl
var kubeletTemplate string

//go:embed kube-proxy.yaml.tmpl
var proxyTemplate string

//go:embed coredns.yaml.tmpl
var dnsTemplate string

// NodeFiles returns the configuration files on a node's disk, by their path on the disk.
func (p Plan) NodeFiles(n Node) (map[string][]byte, error) {
	conflist, err := p.Conflist(n)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"etc-cni/net.d/10-cluster.conflist": conflist,
		// Pods that use the node's resolver find none: the cluster is cut off from the outside.
		"config/resolv.conf": []byte("# no name server: the cluster has no way out\n"),
	}
	for name, text := range map[string]string{
		"containerd.toml": containerdTemplate, "kubelet.yaml": kubeletTemplate, "kube-proxy.yaml": proxyTemplate,
	} {
		rendered, err := p.render(name, text, n)
		if err != nil {
			return nil, err
		}
		files["config/"+name] = rendered
	}
	return files, nil
}

// Manifests returns what is applied to the cluster: CoreDNS. The nodes are in NodeObject.
func (p Plan) Manifests() ([]byte, error) { return p.render("coredns.yaml", dnsTemplate, Node{}) }

// NodeObject is the part of a Node that a cloud's controller would fill in: its pod ranges.
func (n Node) NodeObject() ([]byte, error) {
	type m = map[string]any
	return json.Marshal(m{
		"apiVersion": "v1", "kind": "Node", "metadata": m{"name": n.Name},
		"spec": m{"podCIDR": n.PodRanges[0], "podCIDRs": n.PodRanges},
	})
}

// Conflist is the node's CNI configuration: point-to-point links, so that every packet between pods is routed and
// passes the node's own network stack. Other plugins may be chained to it.
func (p Plan) Conflist(n Node) ([]byte, error) {
	type m = map[string]any
	var ranges, routes []any
	for _, r := range n.PodRanges {
		ranges = append(ranges, []any{m{"subnet": r.String()}})
		everywhere := "0.0.0.0/0"
		if r.Addr().Is6() {
			everywhere = "::/0"
		}
		routes = append(routes, m{"dst": everywhere})
	}
	return json.MarshalIndent(m{
		"cniVersion": "1.0.0",
		"name":       "cluster",
		"plugins": []any{
			m{"type": "ptp", "mtu": 1500, "ipMasq": false, "ipam": m{
				// Below /run: a power cut ends all pods, so it must free their addresses too.
				"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes,
			}},
			m{"type": "portmap", "capabilities": m{"portMappings": true}},
		},
	}, "", "  ")
}

// Kubeconfig lets the holder of a client certificate in. With paths in place of data it refers to files in Secrets.
func (p Plan) Kubeconfig(user string, ca, cert, key []byte) ([]byte, error) {
	type m = map[string]any
	return json.MarshalIndent(m{
		"apiVersion": "v1", "kind": "Config", "current-context": "ambit",
		"clusters": []any{m{"name": "ambit", "cluster": m{"server": p.Server(), "certificate-authority-data": ca}}},
		"users":    []any{m{"name": user, "user": m{"client-certificate-data": cert, "client-key-data": key}}},
		"contexts": []any{m{"name": "ambit", "context": m{"cluster": "ambit", "user": user}}},
	}, "", "  ")
}

func (p Plan) render(name, text string, n Node) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	proxyCIDR := join(p.PodRanges)
	var out bytes.Buffer
	err = t.Execute(&out, map[string]any{
		"Plan": p, "Node": n, "Disk": p.Disk(n.Name), "Bin": p.BinDir, "Domain": Domain,
		"CA":         filepath.Join(p.Secrets(), "ca.crt"),
		"Cgroup":     "/" + Cgroup + "/" + n.Name,
		"Pause":      pauseImage,
		"DNSImage":   dnsImage,
		"PodRanges":  proxyCIDR,
		"Every":      p.Unspecified(),
		"FailCgroup": p.CgroupV2,
	})
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", name, err)
	}
	return out.Bytes(), nil
}
