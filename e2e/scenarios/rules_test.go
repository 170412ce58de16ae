package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

// commander runs a program in a network namespace: of a node, or of a pod.
type commander interface {
	Command(ctx context.Context, program string, args ...string) (string, error)
}

// rules returns whatever of the mesh is in a pod's network namespace: rules of both kinds of iptables, policy routing, sockets.
func (w *world) rules(pod harness.Pod) ([]string, error) {
	inside, err := w.Inside(w.ctx, pod)
	if err != nil {
		return nil, err
	}
	found, err := w.meshRules(inside)
	if err != nil {
		return nil, err
	}
	for _, family := range []string{"-4", "-6"} {
		out, err := inside.Command(w.ctx, "ip", family, "rule")
		if err != nil {
			return nil, err
		}
		found = append(found, matching("ip "+family+" rule: ", out, fmt.Sprintf("fwmark 0x%x", api.ConnmarkInbound))...)
		// A table that was never used does not exist, which is an error of ip.
		out, _ = inside.Command(w.ctx, "ip", family, "route", "show", "table", fmt.Sprint(api.RouteTable))
		found = append(found, matching("ip "+family+" route: ", out, "local")...)
	}
	out, err := inside.Command(w.ctx, "ss", "-Hltn")
	if err != nil {
		return nil, err
	}
	for _, port := range []int{api.PortOutbound, api.PortInbound, api.PortHBONE} {
		found = append(found, matching("listener: ", out, fmt.Sprintf(":%d ", port))...)
	}
	return found, nil
}

// meshRules returns the rules and chains of the mesh in all tables, of both families and both kinds of iptables.
func (w *world) meshRules(in commander) ([]string, error) {
	var found []string
	for _, program := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		out, err := in.Command(w.ctx, program)
		if err != nil {
			return nil, err
		}
		for _, line := range matching(program+": ", out, "ISTIO", "AMBIT", "istio-inpod", "15001", "15006", "0x539", "0x111") {
			// kube-proxy's rules carry the names of services, and save prints comments.
			if !strings.Contains(line, "KUBE-") && !strings.HasPrefix(line, program+": #") {
				found = append(found, line)
			}
		}
	}
	return found, nil
}

// matching returns the lines that contain one of the words.
func matching(prefix, text string, words ...string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		for _, word := range words {
			if strings.Contains(line, word) {
				lines = append(lines, prefix+strings.TrimSpace(line))
				break
			}
		}
	}
	return lines
}

// stateDir is where node proxies save what they know (the chart's ztunnel.stateDir). An uninstall leaves the empty folder.
const stateDir = "/var/lib/ambit/ztunnel"

// leftovers returns whatever of the mesh is still on a node: rules, sets, the plugin and its configuration, sockets, what node proxies
// save, and all of that in the network namespaces of its pods.
func (w *world) leftovers(t *testing.T, name string) ([]string, error) {
	t.Helper()
	node, err := w.Node(name)
	if err != nil {
		return nil, err
	}
	found, err := w.meshRules(node)
	if err != nil {
		return nil, err
	}
	sets, err := node.Command(w.ctx, "ipset", "list", "-n")
	if err != nil {
		return nil, err
	}
	found = append(found, matching("ipset: ", sets, api.ProbeSetIPv4, api.ProbeSetIPv6)...)
	for _, path := range []string{"/opt/cni/bin/" + api.PluginName, api.ZDSSocket, api.AgentRunDir + "/" + api.AgentSocket, api.AgentRunDir + "/ambit-cni-kubeconfig"} {
		if _, err := os.Lstat(node.Path(path)); err == nil {
			found = append(found, "file "+path)
		}
	}
	saved, err := os.ReadDir(node.Path(stateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range saved {
		found = append(found, "file "+stateDir+"/"+e.Name())
	}
	err = fs.WalkDir(os.DirFS(node.Path("/etc/cni/net.d")), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(node.Path("/etc/cni/net.d/" + path))
		if err == nil {
			found = append(found, matching("CNI configuration "+path+": ", string(raw), api.PluginName)...)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	pods, err := w.Pods(w.ctx, "", "")
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != name || pod.Spec.HostNetwork || pod.Status.Phase != corev1.PodRunning {
			continue
		}
		of := harness.Pod{Namespace: pod.Namespace, Name: pod.Name}
		left, err := w.rules(of)
		if err != nil {
			return nil, err
		}
		for _, line := range left {
			found = append(found, fmt.Sprintf("pod %s: %s", of, line))
		}
		if v, ok := pod.Annotations[api.AnnotationRedirection]; ok {
			found = append(found, fmt.Sprintf("pod %s: annotation %s=%q", of, api.AnnotationRedirection, v))
		}
	}
	return found, nil
}
