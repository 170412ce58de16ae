package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// StartWaypoint starts a waypoint binary in the pod, which must not be captured, until the lab closes. It serves what Control.Set says of
// listeners and their like. Further environment overrides the lab's.
func (p *Pod) StartWaypoint(binary string, env ...string) (*Proxy, error) {
	control := p.Node.lab.Control
	tokenFile := filepath.Join(p.Node.lab.dir, "token-"+p.Name)
	if err := os.WriteFile(tokenFile, []byte(tokenOf+p.Identity()), 0o600); err != nil {
		return nil, fmt.Errorf("start waypoint %s: %w", p.Name, err)
	}
	proxy := &Proxy{Node: p.Node, host: p.Host, cmd: exec.Command(binary, "proxy", "waypoint")}
	proxy.cmd.Env = append(append([]string{
		"AUTH_TOKEN=" + tokenFile, "NODE_NAME=" + p.Node.Name, "POD_NAME=" + p.Name, "POD_NAMESPACE=" + p.Namespace,
		"INSTANCE_IP=" + p.Addrs()[0].String(), "SERVICE_ACCOUNT=" + p.ServiceAccount, "CLUSTER_ID=Kubernetes",
	}, control.environ()...), env...)
	if err := proxy.start("waypoint"); err != nil {
		return nil, err
	}
	return proxy, nil
}
