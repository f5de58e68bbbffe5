"""SAP on agents that act: DQN under FGSM on what they see (an extra: pip install gymnasium).

Dhillon et al., Stochastic Activation Pruning for Robust Adversarial Defense (ICLR 2018), the
section on reinforcement learning. Nothing else in the library imports this package.
"""
