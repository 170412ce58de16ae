package lifecycle

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/ambit-mesh/ambit/e2e/cluster/pki"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
)

// secrets are files with keys, certificates and kubeconfigs, by absolute path.
type secrets map[string][]byte

func (s secrets) write() error {
	for _, path := range slices.Sorted(maps.Keys(s)) {
		if err := writeFile(path, s[path], 0o600); err != nil {
			return fmt.Errorf("write secrets: %w", err)
		}
	}
	return nil
}

// makeSecrets makes new authorities and what they sign.
func makeSecrets(p plan.Plan) (secrets, error) {
	s := secrets{}
	dir := p.Secrets()
	pair := func(name string, pair pki.Pair) {
		s[filepath.Join(dir, name+".crt")], s[filepath.Join(dir, name+".key")] = pair.Cert, pair.Key
	}
	ca, err := pki.NewAuthority("ambit-cluster")
	if err != nil {
		return nil, err
	}
	front, err := pki.NewAuthority("ambit-front-proxy")
	if err != nil {
		return nil, err
	}
	token, err := pki.NewTokenKey()
	if err != nil {
		return nil, err
	}
	pair("ca", ca.Pair)
	pair("front-ca", front.Pair)
	s[filepath.Join(dir, "token.pub")], s[filepath.Join(dir, "token.key")] = token.Cert, token.Key

	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + plan.Domain, "localhost"}
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, p.Gateways...)
	for _, r := range p.ServiceRanges {
		addresses = append(addresses, r.Addr().Next())
	}
	for _, leaf := range []struct {
		file    string
		by      *pki.Authority
		subject pki.Subject
	}{
		{"apiserver", ca, pki.Subject{Name: "kube-apiserver", Server: true, DNS: names, IPs: addresses}},
		{"apiserver-kubelet", ca, pki.Subject{Name: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}}},
		{"front-proxy", front, pki.Subject{Name: "front-proxy"}},
	} {
		signed, err := leaf.by.Issue(leaf.subject)
		if err != nil {
			return nil, err
		}
		pair(leaf.file, signed)
	}

	configs := map[string]pki.Subject{
		filepath.Join(p.StateDir, "kubeconfig"):       {Name: "ambit-admin", Groups: []string{"system:masters"}},
		filepath.Join(dir, "controller-manager.conf"): {Name: "system:kube-controller-manager"},
		filepath.Join(dir, "scheduler.conf"):          {Name: "system:kube-scheduler"},
	}
	for _, n := range p.Nodes {
		config := filepath.Join(p.Disk(n.Name), "config")
		configs[filepath.Join(config, "kubelet.conf")] = pki.Subject{Name: "system:node:" + n.Name, Groups: []string{"system:nodes"}}
		configs[filepath.Join(config, "kube-proxy.conf")] = pki.Subject{Name: "system:kube-proxy"}
		serving, err := ca.Issue(pki.Subject{Name: n.Name, Server: true, DNS: []string{n.Name}, IPs: n.Addresses})
		if err != nil {
			return nil, err
		}
		s[filepath.Join(config, "kubelet.crt")], s[filepath.Join(config, "kubelet.key")] = serving.Cert, serving.Key
	}
	for path, subject := range configs {
		signed, err := ca.Issue(subject)
		if err != nil {
			return nil, err
		}
		if s[path], err = p.Kubeconfig(subject.Name, ca.Cert, signed.Cert, signed.Key); err != nil {
			return nil, err
		}
	}
	return s, nil
}
